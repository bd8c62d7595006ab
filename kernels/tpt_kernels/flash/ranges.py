"""Documents and placed queries as ranges: all that the kernels know about what may see what.

A query sees the keys [key_begin, key_end): from its document's start to its own position. Since positions
ascend, a key is seen by the queries [query_begin, query_end). Nothing is read on the host.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Ranges(NamedTuple):
    key_begin: Tensor  # [tokens] int32, per query
    key_end: Tensor
    query_begin: Tensor  # [kv_tokens] int32, per key
    query_end: Tensor


def visible_ranges(cu_seqlens: Tensor, kv_tokens: int, query_positions: Tensor | None) -> Ranges:
    """cu_seqlens [documents + 1], empty documents allowed; query_positions [tokens], ascending, or None."""
    keys = torch.arange(kv_tokens, device=cu_seqlens.device, dtype=torch.int32)
    bounds = cu_seqlens.to(torch.int32)
    document = torch.searchsorted(bounds[1:], keys, right=True)  # [kv_tokens]
    begin, end = bounds[:-1][document], bounds[1:][document]
    if query_positions is None:
        return Ranges(begin, keys + 1, keys, end)
    positions = query_positions.to(torch.int32).contiguous()
    torch._assert_async(
        (positions.diff() > 0).all(), "query_positions: expected to ascend; sort the queries by position"
    )
    first, last = (torch.searchsorted(positions, x, out_int32=True) for x in (keys, end.contiguous()))
    return Ranges(begin[positions], positions + 1, first, last)
