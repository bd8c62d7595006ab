"""An attention of one's own, in a few lines of torch. kernels.attention=plain_attention:attention"""

import torch
from torch import Tensor


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
    """Signature and shapes of tpt_kernels.attention."""
    out = []
    for begin, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        q, k, v = (t[begin:end].transpose(0, 1) for t in (query, key, value))  # [heads, length, dim]
        repeats = q.shape[0] // k.shape[0]
        k, v = (t.repeat_interleave(repeats, dim=0) for t in (k, v))
        scores = q @ k.transpose(1, 2) * (scale or q.shape[2] ** -0.5)
        future = torch.ones(end - begin, end - begin, dtype=torch.bool).triu(1)
        out.append((scores.masked_fill(future, float("-inf")).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(out)
