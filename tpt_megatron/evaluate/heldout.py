"""Held-out loss of a Hugging Face folder, on document tokens and on thought tokens apart."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from tpt_megatron.artifact import MANIFEST_SUFFIX, Manifest, digest_file, write_manifest, write_text
from tpt_megatron.config.schema import EvaluateConfig
from tpt_megatron.data.indexed import IndexedDataset
from tpt_megatron.errors import ConfigError, InputError


@dataclass(frozen=True)
class HeldoutLoss:
    """Mean cross-entropy in nats a token; None where there is no such token.

    A token is predicted from its own sequence alone. Document tokens are those outside the thought's span,
    thought tokens those inside it, tags included; the end-of-document token counts in `loss` only, so that
    the document loss of a dataset with thoughts and of one without is over the same tokens.
    """

    loss: float | None
    tokens: int
    document_loss: float | None
    document_tokens: int
    thinking_loss: float | None
    thinking_tokens: int


def evaluate_heldout(config: EvaluateConfig, progress: Callable[[int, int], None]) -> dict[str, HeldoutLoss]:
    """The loss on each dataset of evaluate.data, by name; written to evaluate.output/evaluation.json.

    `progress` gets (sequences done, of how many). Raises ConfigError for missing keys, InputError for a model
    that cannot be opened or a dataset of another vocabulary.
    """
    for key in ("model", "data", "output"):
        if not getattr(config, key):
            raise ConfigError(f"evaluate.{key}: missing", fix=f"evaluate.{key}=...")
    model = _open_model(config.model)
    datasets = {Path(prefix).name: IndexedDataset(Path(prefix)) for prefix in config.data}
    if len(datasets) != len(config.data):
        raise ConfigError("evaluate.data: two datasets of one name", got=list(config.data))
    total = sum(_count(d, config) for d in datasets.values())
    results, done = {}, 0
    for name, dataset in datasets.items():
        _check_vocabulary(dataset, model, name)
        results[name], done = _dataset_loss(model, dataset, config, lambda n: progress(n, total), done)
    _write(config, results)
    return results


def _open_model(path: str) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise InputError(f"evaluate.model: cannot open {path!r}: {str(error).splitlines()[0]}") from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _check_vocabulary(dataset: IndexedDataset, model: Any, name: str) -> None:
    needed, there = dataset.manifest.about["tokenizer"]["vocab_size"], model.config.vocab_size
    if needed > there:
        raise InputError(
            f"evaluate.data: {name} has a larger vocabulary than the model", got=needed, expected=there
        )


def _count(dataset: IndexedDataset, config: EvaluateConfig) -> int:
    return min(dataset.num_sequences, config.max_sequences or dataset.num_sequences)


@torch.inference_mode()
def _dataset_loss(
    model: Any, dataset: IndexedDataset, config: EvaluateConfig, progress: Callable[[int], None], done: int
) -> tuple[HeldoutLoss, int]:
    end = dataset.manifest.about["control"]["end"]
    sums, counts = np.zeros(3), np.zeros(3, np.int64)  # all, document, thought
    for number in range(_count(dataset, config)):
        ids = torch.from_numpy(dataset.sequence(number).astype(np.int64)).to(model.device)
        part = dataset.parts[number]
        losses = (
            cross_entropy(model(ids[None]).logits[0, :-1].float(), ids[1:], reduction="none").cpu().numpy()
        )
        place = np.arange(1, len(ids))  # the position of each predicted token
        thinking = (place >= part["thinking_start"]) & (place < part["thinking_end"])
        document = ~thinking & (ids[1:].cpu().numpy() != end)
        for row, mask in enumerate((np.ones_like(thinking), document, thinking)):
            sums[row] += losses[mask].sum(dtype=np.float64)
            counts[row] += mask.sum()
        done += 1
        progress(done)
    means = [float(s / c) if c else None for s, c in zip(sums, counts, strict=True)]
    tokens, documents, thoughts = (int(c) for c in counts)
    return HeldoutLoss(means[0], tokens, means[1], documents, means[2], thoughts), done


def _write(config: EvaluateConfig, results: dict[str, HeldoutLoss]) -> None:
    folder = Path(config.output)
    path = folder / "evaluation.json"
    body = {"model": config.model, "datasets": {name: asdict(loss) for name, loss in results.items()}}
    write_text(path, json.dumps(body, indent=1) + "\n")
    manifest = Manifest("evaluation", {path.name: digest_file(path, None)}, {"model": config.model}, None)
    write_manifest(folder / MANIFEST_SUFFIX, manifest)
