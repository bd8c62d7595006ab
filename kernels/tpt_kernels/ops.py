"""The public ops: a name, a signature, and the choice of the implementation.

`impl="auto"` is what is fastest by measurement on the device at hand. A fork's own function is no
name here: it takes the op's seat in the model through the slots `kernels.*`.
"""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from tpt_kernels.choice import attention_by
from tpt_kernels.loss.cross_entropy import CrossEntropy
from tpt_kernels.loss.functions import Recompute, WithGradients, main_grad_of, weighted_sum
from tpt_kernels.loss.rows import LOSS_IMPLS
from tpt_kernels.options import LossOptions


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
    0 to kv_tokens; max_seqlen the longest document (a bound above it costs speed, never correctness);
    query_positions [tokens] int32, ascending: where each query stands in the row that key and value cover
    whole (None: it covers them in order); scale None: dim ** -0.5. Returns [tokens, heads, dim] in the
    query's dtype. ValueError for an unknown impl, or shapes that do not fit.

    impl "triton" gives the same bits for the same inputs; "auto" does under
    torch.use_deterministic_algorithms, and else may take a faster peer whose backward adds in any order.
    """
    run = attention_by(impl, query, key, cu_seqlens, max_seqlen, query_positions)
    _check_attention(query, key, value, cu_seqlens, query_positions)
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
    """Loss of each row over a vocabulary split over `group`; the backward overwrites the logits.

    logits [tokens, vocab / tensor], this rank's columns; target [tokens] int64, ids of the whole vocabulary.
    Returns [tokens] float32; a target outside of the vocabulary gives NaN. The gradient takes the logits'
    memory: nothing else may need them after the backward. ValueError for an unknown impl or shapes that do
    not fit.
    """
    _check_loss(logits, None, target, impl)
    loss: Tensor = CrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits, target, _name(group), options.vocab_size, options.ignore_index, options.z_loss, impl
    )
    return loss


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
    int64. Returns [tokens] float32; any weights upstream per token; logits are made again in the backward.
    The gradient of `hidden` is this rank's part: whoever gathered it reduces it once. The weight's gradient
    is summed in float32, in `weight.main_grad` where megatron-core gave it one. ValueError as cross_entropy.
    """
    _check_loss(hidden, weight, target, impl)
    loss: Tensor = Recompute.apply(  # type: ignore[no-untyped-call]
        hidden, weight, target, main_grad_of(weight), _name(group), options, impl
    )
    return loss


def linear_cross_entropy_sum(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    token_weight: Tensor,
    *,
    group: ProcessGroup | None = None,
    options: LossOptions = LossOptions(),  # noqa: B008 (frozen)
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """sum(token_weight * loss), and the loss of each row [tokens] float32 without a gradient.

    As linear_cross_entropy, with its gradients made in the forward, three matrix products instead of four;
    token_weight [tokens] float32 weighs the rows and has no gradient of its own. The gradient of `hidden` is
    rounded to its dtype in the forward and scaled in the backward, so fp16 with a loss scale loses what the
    scale is for: use linear_cross_entropy there. Without gradients asked for (evaluation) only the loss is
    computed.
    """
    _check_loss(hidden, weight, target, impl)
    if token_weight.shape != target.shape:
        raise ValueError(f"token_weight: got shape {list(token_weight.shape)}, expected {list(target.shape)}")
    if token_weight.requires_grad:
        raise ValueError("token_weight: requires a gradient, which this op has not; use linear_cross_entropy")
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        both: tuple[Tensor, Tensor] = WithGradients.apply(  # type: ignore[no-untyped-call]
            hidden, weight, target, token_weight, main_grad_of(weight), _name(group), options, impl
        )
        return both
    loss = linear_cross_entropy(hidden, weight, target, group=group, options=options, impl=impl)
    return weighted_sum(loss, token_weight), loss


def _name(group: ProcessGroup | None) -> str | None:
    """A group goes by its name through custom ops, whose arguments are plain values."""
    return None if group is None else str(group.group_name)


def _check_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, query_positions: Tensor | None
) -> None:
    heads, kv_heads = query.shape[1], key.shape[1]
    placed = query.shape[0] if query_positions is not None else key.shape[0]
    if key.shape != value.shape or query.shape[2] != key.shape[2] or heads % kv_heads:
        raise ValueError(
            f"query {list(query.shape)}, key {list(key.shape)}, value {list(value.shape)}: expected "
            "equal key and value, one dim, and heads a multiple of kv_heads"
        )
    if query.shape[0] != placed or (query_positions is not None and len(query_positions) != placed):
        raise ValueError(
            f"query: got {query.shape[0]} tokens for {key.shape[0]} keys; expected as many, or "
            "query_positions with one position a query"
        )
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(f"query {query.dtype}, key {key.dtype}, value {value.dtype}: expected one dtype")
    if cu_seqlens.dtype not in (torch.int32, torch.int64) or cu_seqlens.dim() != 1:
        raise ValueError(
            f"cu_seqlens: got {cu_seqlens.dtype} {list(cu_seqlens.shape)}, expected int32 [documents + 1]"
        )


def _check_loss(rows: Tensor, weight: Tensor | None, target: Tensor, impl: str) -> None:
    if impl not in LOSS_IMPLS:
        raise ValueError(f"impl: got {impl!r}, expected one of {', '.join(LOSS_IMPLS)}")
    if rows.dim() != 2 or target.shape != rows.shape[:1]:
        raise ValueError(
            f"target: got shape {list(target.shape)} for rows {list(rows.shape)}, expected [tokens] for "
            "[tokens, columns]"
        )
    if target.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"target: got {target.dtype}, expected int64")
    if weight is not None and (weight.dim() != 2 or weight.shape[1] != rows.shape[1]):
        raise ValueError(
            f"weight: got shape {list(weight.shape)}, expected [vocabulary, {rows.shape[1]}] as hidden has"
        )
    if weight is not None and weight.dtype != rows.dtype:
        raise ValueError(f"weight: got {weight.dtype}, expected {rows.dtype} as hidden has")
