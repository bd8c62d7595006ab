"""Attention by torch's scaled_dot_product_attention, one call for documents of one length, else one each."""

import itertools

import torch
from torch import Tensor
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
    """As tpt_kernels.attention, for queries in order. Reads cu_seqlens on the host (one synchronisation)."""
    assert query_positions is None, "the op sends placed queries to the reference"
    tokens = key.shape[0]
    if max_seqlen * (cu_seqlens.shape[0] - 1) == tokens:  # every document is as long as the longest
        return _equal_documents(query, key, value, max_seqlen, scale)
    bounds = cu_seqlens.tolist()
    parts = [
        _equal_documents(query[a:b], key[a:b], value[a:b], b - a, scale)
        for a, b in itertools.pairwise(bounds)
        if b > a
    ]
    return torch.cat(parts)


def _equal_documents(query: Tensor, key: Tensor, value: Tensor, length: int, scale: float | None) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    q, k, v = (
        t.reshape(-1, length, *t.shape[1:]).transpose(1, 2) for t in (query, key, value)
    )  # [docs, heads, t, dim]
    out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2).flatten(0, 1)
