"""The public ops: a name, a signature, and the choice of the implementation.

`impl="auto"` is what is fastest by measurement on the device at hand. A fork's own function is no
name here: it takes the op's seat in the model through the slots `kernels.*`.
"""

from collections.abc import Callable

from torch import Tensor
from torch.distributed import ProcessGroup

from tpt_kernels import reference, sdpa
from tpt_kernels.options import LossOptions

ATTENTION: dict[str, Callable[..., Tensor]] = {
    "reference": reference.attention,
    "sdpa": sdpa.attention,
    "auto": sdpa.attention,
}


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    cu_seqlens: Tensor,
    max_seqlen: int,
    query_positions: Tensor | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """Causal attention within each document.

    query [tokens, heads, dim]; key, value [kv_tokens, kv_heads, dim]; cu_seqlens [documents + 1] int32 from
    0 to kv_tokens; max_seqlen the longest document; query_positions [tokens] int32, where each query stands
    in the row that key and value cover whole (None: it covers them in order); scale None: dim ** -0.5.
    Returns [tokens, heads, dim] in the query's dtype. ValueError for an unknown impl.
    """
    if impl not in ATTENTION:
        raise ValueError(f"impl: got {impl!r}, expected one of {', '.join(sorted(ATTENTION))}")
    run = ATTENTION["reference"] if query_positions is not None else ATTENTION[impl]
    return run(
        query, key, value, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen,
        query_positions=query_positions, scale=scale,
    )  # fmt: skip


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    group: ProcessGroup | None = None,
    options: LossOptions = LossOptions(),  # noqa: B008 (frozen)
    impl: str = "auto",
) -> Tensor:
    """Loss of each row over a vocabulary split over `group`.

    logits [tokens, vocab / tensor], this rank's columns; target [tokens] int64, ids of the whole vocabulary.
    Returns [tokens] float32.
    """
    _reference_only(impl)
    return reference.cross_entropy(logits, target, group=group, options=options)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    group: ProcessGroup | None = None,
    options: LossOptions = LossOptions(),  # noqa: B008 (frozen)
    impl: str = "auto",
) -> Tensor:
    """Loss of each row of `hidden @ weight.T`, the logits never in memory at once.

    hidden [tokens, hidden], whole on every rank of `group`; weight [vocab / tensor, hidden]; target [tokens]
    int64. Returns [tokens] float32; any weights upstream per token. The gradient of `hidden` is this rank's
    part: whoever gathered it reduces it once.
    """
    _reference_only(impl)
    return reference.linear_cross_entropy(hidden, weight, target, group=group, options=options)


def _reference_only(impl: str) -> None:
    if impl not in ("auto", "reference"):
        raise ValueError(f"impl: got {impl!r}, expected 'auto' or 'reference'")
