"""The in-process engine: a Hugging Face model and a decode loop of ours, on a GPU or on the CPU.

`model.generate` draws all rows of a batch from one random stream, so a trajectory would depend on its
neighbours (facts: same seed, other batch, other text). Here each request has its own generator, and a row
that ends leaves its slot to the next request at once.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor
from transformers import AutoModelForCausalLM

from tpt_megatron.config.schema import ThinkingConfig
from tpt_megatron.errors import ConfigError, InputError, StoppedError
from tpt_megatron.thinking.engines.cache import SlotCache
from tpt_megatron.thinking.engines.sampling import sample_tokens
from tpt_megatron.thinking.request import Completion, FinishReason, Request
from tpt_megatron.tokenizer import TextTokenizer

PREFILL_TOKENS = 16384  # padded tokens of one prompt forward: bounds its activations
REFILL_DIVISOR = 8  # wait for an eighth of the slots: one prompt forward a row costs more than the idle slots


@dataclass(slots=True)
class Row:
    """A request on its way: its random numbers, its limit, what it has said so far."""

    request: Request
    limit: int
    uniforms: list[float]
    output: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens in the cache: the prompt and the output, of which the last is not yet in."""
        return len(self.request.prompt_ids) + len(self.output) - 1


class TransformersEngine:
    """Full-attention causal models, fp32 on the CPU, the checkpoint's own precision on a GPU.

    Raises InputError where the model cannot be opened, ConfigError where it or its tokenizer does not fit.
    """

    seed_honored = True

    def __init__(self, config: ThinkingConfig, tokenizer: TextTokenizer) -> None:
        self.config = config
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Any = _open_model(config, self.device)
        settings = self.model.config
        self.generator = config.model
        self.revision = _revision(config, settings)
        self.max_context = int(settings.max_position_embeddings)
        self.vocab_size = int(self.model.get_input_embeddings().num_embeddings)
        self.stop_ids = _stop_ids(config, tokenizer, self.model)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """See Engine.generate. `batch_size` rows run at once; which ones does not change any of them."""
        incoming, exhausted = iter(requests), False
        cache, rows = SlotCache(self.config.batch_size), list[Row]()
        while rows or not exhausted:
            free = self.config.batch_size - len(rows)
            if not exhausted and (not rows or free * REFILL_DIVISOR >= self.config.batch_size):
                fresh = [self._row(request) for request in islice(incoming, free)]
                exhausted = len(fresh) < free
                self._admit(fresh, rows, cache)
            else:
                self._step(rows, cache)
            yield from self._release(rows, cache)

    def _row(self, request: Request) -> Row:
        ids = request.prompt_ids
        if not ids or min(ids) < 0 or max(ids) >= self.vocab_size:
            raise InputError(
                f"document {request.document.id!r}: the prompt's ids do not fit {self.generator}",
                got=f"{len(ids)} ids from {min(ids, default=0)} to {max(ids, default=0)}",
                expected=f"at least one, below {self.vocab_size}",
                fix="give thinking.model a tokenizer of its own",
            )
        limit = min(request.max_new_tokens, self.max_context - len(ids))
        if limit < 1:
            raise InputError(
                f"document {request.document.id!r}: the prompt leaves no room for a thought",
                got=f"{len(ids)} tokens", expected=f"fewer than {self.max_context}",
                fix="lower thinking.max_document_tokens",
            )  # fmt: skip
        # All numbers at once and on the CPU: the same on every device, and no draw per step.
        generator = torch.Generator().manual_seed(request.seed)
        uniforms = torch.rand(limit, generator=generator, dtype=torch.float64).tolist()
        return Row(request, limit, uniforms)

    @torch.inference_mode()
    def _admit(self, fresh: Sequence[Row], rows: list[Row], cache: SlotCache) -> None:
        """Run the prompts of `fresh`, take each one's first token, and give them slots behind `rows`."""
        for group in _groups_by_length(fresh):
            lengths = [len(row.request.prompt_ids) for row in group]
            width = max(lengths)
            ids = torch.zeros(len(group), width, dtype=torch.int64)
            mask = torch.zeros_like(ids)  # 1: a token, 0: padding, which stands on the left
            for index, row in enumerate(group):
                ids[index, width - lengths[index] :] = torch.tensor(row.request.prompt_ids)
                mask[index, width - lengths[index] :] = 1
            positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
            result = self.model(
                input_ids=ids.to(self.device),
                attention_mask=mask.to(self.device),
                position_ids=positions.to(self.device),
                use_cache=True,
                logits_to_keep=1,
            )
            self._extend(group, result.logits[:, -1])
            for index, row in enumerate(group):
                cache.admit(len(rows), result.past_key_values, index, lengths[index])
                rows.append(row)

    @torch.inference_mode()
    def _step(self, rows: Sequence[Row], cache: SlotCache) -> None:
        """One more token for each row."""
        lengths = [row.length for row in rows]
        columns = torch.tensor(lengths, device=self.device)  # [rows]
        width = max(lengths) + 1
        cache.begin_step(columns, width)
        seen = torch.arange(width, device=self.device) <= columns[:, None]  # [rows, width]
        last = torch.tensor([row.output[-1] for row in rows], device=self.device)
        result = self.model(
            input_ids=last[:, None],
            attention_mask=seen[:, None, None, :],
            position_ids=columns[:, None],
            past_key_values=cache.as_past,
            use_cache=True,
        )
        self._extend(rows, result.logits[:, -1])

    def _extend(self, rows: Sequence[Row], logits: Tensor) -> None:
        """Sample a token for each row from logits [rows, vocab] and append it."""
        numbers = torch.tensor(
            [row.uniforms[len(row.output)] for row in rows], dtype=torch.float64, device=self.device
        )
        ids = sample_tokens(logits, numbers, self.config.temperature, self.config.top_p).tolist()
        for row, token in zip(rows, ids, strict=True):
            if token < 0:
                raise StoppedError(
                    f"{self.generator}: logits are not numbers for document {row.request.document.id!r}",
                    fix="check the weights; fp16 checkpoints overflow, bf16 ones do not",
                )
            row.output.append(token)

    @torch.inference_mode()
    def _release(self, rows: list[Row], cache: SlotCache) -> list[Completion]:
        """Take the ended rows out of `rows`; the last row moves into each slot that comes free."""
        done: list[Completion] = []
        for slot in reversed(range(len(rows))):
            row = rows[slot]
            stopped = row.output[-1] in self.stop_ids
            if not stopped and len(row.output) < row.limit:
                continue
            reason: FinishReason = "stop" if stopped else "length"
            done.append(Completion(row.request.key, tuple(row.output), reason, self.seed_honored))
            mover = rows.pop()
            if mover is not row:
                rows[slot] = mover
                cache.move(len(rows), slot, mover.length)
        return done


def _open_model(config: ThinkingConfig, device: torch.device) -> Any:
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            config.model,
            revision=config.revision or None,
            dtype=torch.float32 if device.type == "cpu" else "auto",
            attn_implementation="sdpa",
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"thinking.model: cannot open {config.model!r}: {str(error).splitlines()[0]}",
            fix="give a folder with config.json and safetensors, or a hub name that this machine can reach",
        ) from error
    kinds = set(getattr(model.config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        raise ConfigError(
            f"thinking.model: the transformers engine cannot run {config.model}",
            got=f"layers of {', '.join(sorted(kinds))}", expected="full attention in every layer",
            fix="use another thinking.engine",
        )  # fmt: skip
    return model.eval().to(device)


def _stop_ids(config: ThinkingConfig, tokenizer: TextTokenizer, model: Any) -> frozenset[int]:
    """The end of the thought, and every end-of-sequence that the model or the tokenizer knows."""
    ends = [model.generation_config.eos_token_id, model.config.eos_token_id, tokenizer.hf.eos_token_id]
    flat = [i for end in ends if end is not None for i in (end if isinstance(end, list) else [end])]
    return frozenset({tokenizer.control_id(config.think_close, "thinking.think_close"), *flat})


def _revision(config: ThinkingConfig, settings: Any) -> str:
    """Which weights these are: the hub's commit, or for a folder the xxh3-128 of its weight files.

    A folder is overwritten more easily than a commit; hashing runs at the speed of the disk, as loading does.
    """
    folder = Path(config.model)
    if not folder.is_dir():
        return getattr(settings, "_commit_hash", None) or config.revision
    digest = xxhash.xxh3_128()
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as file:
            while data := file.read(2**24):
                digest.update(data)
    return f"xxh3-{digest.hexdigest()}"


def _groups_by_length(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows of similar prompt lengths, so that little is padding; at most PREFILL_TOKENS a group."""
    group: list[Row] = []
    for row in sorted(rows, key=lambda row: len(row.request.prompt_ids)):
        if group and (len(group) + 1) * len(row.request.prompt_ids) > PREFILL_TOKENS:
            yield group
            group = []
        group.append(row)
    if group:
        yield group
