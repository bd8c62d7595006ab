"""attention by Triton as torch sees it: two opaque ops and their autograd."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tpt_kernels.flash.launch import backward, forward
from tpt_kernels.flash.ranges import Ranges, visible_ranges
from tpt_kernels.flash.tiles import FORWARD, KEY_VALUE, QUERY, tile_of
from tpt_kernels.target import device_of

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    cu_seqlens: Tensor,
    max_seqlen: int,
    query_positions: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """As tpt_kernels.attention; bf16, fp16 or fp32 and a dim of at most 256, a multiple of 8."""
    del max_seqlen  # the ranges say how far each program goes
    dim = query.shape[2]
    if not takes(query):
        raise ValueError(
            f"query: got {query.dtype} with dim {dim}, expected bfloat16, float16 or float32 and "
            "a multiple of 8 up to 256; use impl='reference'"
        )
    ranges = visible_ranges(cu_seqlens, key.shape[0], query_positions)
    out: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
        query, key, value, *ranges, dim**-0.5 if scale is None else scale
    )
    return out


def takes(query: Tensor) -> bool:
    """Whether the kernels are written for this dtype and head dim."""
    dim = query.shape[2]
    return query.dtype in DTYPES and dim % 8 == 0 and dim <= 256


@torch.library.custom_op("tpt_kernels::attention_forward", mutates_args=())
def attention_forward(
    query: Tensor, key: Tensor, value: Tensor, key_begin: Tensor, key_end: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """out [tokens, heads, dim] and the base-2 logsumexp of each row of scores [heads, tokens] float32."""
    with device_of(query):
        return forward(query, key, value, key_begin, key_end, scale, tile_of(FORWARD, query))


@attention_forward.register_fake
def _attention_forward_shape(
    query: Tensor, key: Tensor, value: Tensor, key_begin: Tensor, key_end: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    tokens, heads, _ = query.shape
    return query.new_empty(query.shape), query.new_empty(heads, tokens, dtype=torch.float32)


@torch.library.custom_op("tpt_kernels::attention_backward", mutates_args=())
def attention_backward(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor, out_gradient: Tensor,
    key_begin: Tensor, key_end: Tensor, query_begin: Tensor, query_end: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of query, key and value."""
    ranges = Ranges(key_begin, key_end, query_begin, query_end)
    tiles = tile_of(KEY_VALUE, query), tile_of(QUERY, query)
    with device_of(query):
        return backward(query, key, value, out, logsumexp, out_gradient, ranges, scale, *tiles)


@attention_backward.register_fake
def _attention_backward_shape(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor, out_gradient: Tensor,
    key_begin: Tensor, key_end: Tensor, query_begin: Tensor, query_end: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


class _Attention(torch.autograd.Function):
    """(query, key, value, the four ranges, scale) -> out."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, key_begin: Tensor, key_end: Tensor,
        query_begin: Tensor, query_end: Tensor, scale: float,
    ) -> Tensor:  # fmt: skip
        out: Tensor
        out, logsumexp = attention_forward(query, key, value, key_begin, key_end, scale)
        ranges = (key_begin, key_end, query_begin, query_end)
        ctx.save_for_backward(query, key, value, out, logsumexp, *ranges)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, logsumexp, *ranges = ctx.saved_tensors
        gradients = attention_backward(query, key, value, out, logsumexp, out_gradient, *ranges, ctx.scale)
        return *gradients, None, None, None, None, None
