"""Every op's arithmetic in obvious torch: the fallback, and the peer that tests and benchmarks compare with.

Statistics are float32 (float64 for float64 inputs).
"""

import torch
from torch import Tensor

from tpt_kernels.loss.statistics import Columns, shares


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
    """As tpt_kernels.attention, with the whole score matrix in memory."""
    del max_seqlen  # only kernels need it
    tokens, groups = key.shape[0], query.shape[1] // key.shape[1]
    positions = torch.arange(tokens, device=key.device)  # [kv_tokens]
    document = torch.searchsorted(cu_seqlens[1:].long(), positions, right=True)  # [kv_tokens]
    placed = positions if query_positions is None else query_positions.long()  # [tokens]
    visible = (document[placed][:, None] == document[None]) & (placed[:, None] >= positions[None])
    q, k, v = (t.to(wide(query)) for t in (query, key, value))
    k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * (query.shape[2] ** -0.5 if scale is None else scale)
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, v).to(query.dtype)


def row_statistics(logits: Tensor, target: Tensor, columns: Columns) -> Tensor:
    """Peak, total and hit of each row over this rank's columns (statistics.merge says what they are).

    logits [tokens, vocab / tensor], target [tokens] ids of the whole vocabulary -> [3, tokens].
    """
    rows = logits[:, : columns.valid].to(wide(logits))  # [tokens, valid]
    if columns.valid == 0:
        peak = rows.new_full((rows.shape[0],), float("-inf"))
        return torch.stack([peak, torch.zeros_like(peak), torch.zeros_like(peak)])
    local, here = _local_target(target, columns)
    hit = rows.gather(1, local[:, None]).squeeze(1).where(here, 0)
    others = rows.masked_fill(_is_target(rows, local, here), float("-inf"))
    peak = others.amax(dim=1)
    anchor = peak.masked_fill(peak == float("-inf"), 0.0)
    return torch.stack([peak, (others - anchor[:, None]).exp().sum(dim=1), hit])


def logits_gradient_(
    logits: Tensor, statistics: Tensor, target: Tensor, upstream: Tensor,
    columns: Columns, z_loss: float,
) -> None:  # fmt: skip
    """Writes d loss / d logits over the logits: upstream * (softmax * (1 + 2 z logsumexp) - one-hot).

    logits [tokens, vocab / tensor]; statistics [3, tokens] of the whole vocabulary; upstream
    [tokens], 0 for an ignored row.
    """
    anchor, rest, own = shares(statistics)
    given = upstream.to(anchor.dtype)
    whole = rest + own
    slope = 2 * z_loss * (anchor + whole.log())
    rows = (logits[:, : columns.valid].to(anchor.dtype) - anchor[:, None]).exp()
    rows *= (given * (1 + slope) / whole)[:, None]
    local, here = _local_target(target, columns)
    of_target = given * (own * slope - rest) / whole  # softmax - 1 is -rest / whole, without cancellation
    rows = torch.where(_is_target(rows, local, here), of_target[:, None], rows)
    logits[:, : columns.valid] = rows.masked_fill(given[:, None] == 0, 0.0).to(logits.dtype)
    logits[:, columns.valid :] = 0.0


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype of statistics and sums."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _local_target(target: Tensor, columns: Columns) -> tuple[Tensor, Tensor]:
    """Where the target is among this rank's columns (0 where it is not), and whether it is. [tokens] each"""
    local = target - columns.first
    here = (local >= 0) & (local < columns.valid)
    return local.where(here, 0), here


def _is_target(rows: Tensor, local: Tensor, here: Tensor) -> Tensor:
    """[tokens, valid] bool: the one column of a row that is its target."""
    column = torch.arange(rows.shape[1], device=rows.device)
    return (column == local[:, None]) & here[:, None]
