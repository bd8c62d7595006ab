"""One tensor of ours as the Hugging Face tensors it is made of."""

from collections.abc import Iterator

from torch import Tensor

from tpt_megatron.config.schema import ModelConfig
from tpt_megatron.models.family import Rule


def to_theirs(rule: Rule, ours: Tensor, model: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face name, tensor) for each tensor that `rule` says `ours` holds."""
    match rule.kind:
        case "copy":
            parts: tuple[Tensor, ...] = (ours,)
        case "vocab":
            parts = (ours[: model.vocab_size],)  # the padding's rows are ours alone
        case "gate_up":
            parts = ours.chunk(2)
        case "qkv":
            parts = _split_qkv(ours, model)
        case unknown:
            raise AssertionError(f"rule kind {unknown!r}")
    for name, part in zip(rule.theirs, parts, strict=True):
        yield name, part.contiguous()


def _split_qkv(ours: Tensor, model: ModelConfig) -> tuple[Tensor, ...]:
    """Rows are, per key-value group, its query heads, its key, its value (megatron-core's order)."""
    groups, dim = model.num_key_value_heads, model.kv_channels
    queries = model.num_attention_heads // groups
    rows = ours.unflatten(0, (groups, queries + 2, dim))  # type: ignore[no-untyped-call]
    query, key, value = rows.split([queries, 1, 1], dim=1)
    return tuple(part.flatten(0, 2) for part in (query, key, value))
