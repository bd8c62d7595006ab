"""Attention by torch: scaled_dot_product_attention for documents of one length, flash varlen for ragged
ones."""

import inspect
import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention


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
    """As tpt_kernels.attention, for queries in order; one call for documents of one length, else one each.

    Reads ragged cu_seqlens on the host (one synchronisation on a GPU, which is why `auto` takes it on the CPU
    only).
    """
    assert query_positions is None, "choice.py refuses placed queries here"
    if even(key, cu_seqlens, max_seqlen):
        return _equal_documents(query, key, value, max_seqlen, scale)
    bounds = cu_seqlens.tolist()
    parts = [
        _equal_documents(query[a:b], key[a:b], value[a:b], b - a, scale)
        for a, b in itertools.pairwise(bounds)
        if b > a
    ]
    return torch.cat(parts)


def cudnn_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    cu_seqlens: Tensor,
    max_seqlen: int,
    query_positions: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """torch's cuDNN backend, for documents of one length; its backward is not bit-repeatable."""
    assert query_positions is None, "choice.py refuses placed queries here"
    if not even(key, cu_seqlens, max_seqlen):
        raise ValueError("impl: got 'cudnn' for ragged documents; use 'triton' or 'flash'")
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True):
        return _equal_documents(query, key, value, max_seqlen, scale)


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    cu_seqlens: Tensor,
    max_seqlen: int,
    query_positions: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """torch's FlashAttention over cu_seqlens, without synchronisation; bf16 or fp16 on a GPU."""
    from torch.nn.attention.varlen import varlen_attn  # loads CUDA parts

    assert query_positions is None, "choice.py refuses placed queries here"
    bounds = cu_seqlens.to(torch.int32)
    # torch 2.11 has no such argument, and hands grouped heads to the kernel as they are.
    known = "enable_gqa" in inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"enable_gqa": query.shape[1] != key.shape[1]} if known else {}
    out = varlen_attn(
        query, key, value, bounds, bounds, max_seqlen, max_seqlen, scale=scale, window_size=(-1, 0), **options
    )
    assert isinstance(out, Tensor), "no auxiliary output was asked for"
    return out


def even(key: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> bool:
    """Whether every document is as long as the longest: known without reading cu_seqlens."""
    return max_seqlen * (cu_seqlens.shape[0] - 1) == key.shape[0]


def _equal_documents(query: Tensor, key: Tensor, value: Tensor, length: int, scale: float | None) -> Tensor:
    if not query.numel():
        return query + 0 * (key.sum() + value.sum())
    grouped = query.shape[1] != key.shape[1]
    q, k, v = (
        t.reshape(-1, length, *t.shape[1:]).transpose(1, 2) for t in (query, key, value)
    )  # [docs, heads, t, dim]
    out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2).flatten(0, 1)
