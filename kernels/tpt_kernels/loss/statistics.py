"""What a row's loss needs from the whole vocabulary: three numbers a rank, merged by one all-gather."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup, distributed_c10d


@dataclass(frozen=True)
class Columns:
    """Which columns of the vocabulary a rank holds."""

    first: int  # id of its first column
    valid: int  # its columns that are vocabulary, not padding
    vocab_size: int  # of the whole vocabulary, padding left out
    group: ProcessGroup | None

    @staticmethod
    def of(held: int, group_name: str | None, vocab_size: int | None) -> "Columns":
        """`held` columns a rank; groups are named, since an op's arguments must be plain values."""
        c10d: Any = distributed_c10d
        group = None if group_name is None else c10d._resolve_process_group(group_name)
        rank, ranks = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
        total = min(held * ranks, held * ranks if vocab_size is None else vocab_size)
        return Columns(rank * held, max(0, min(held, total - rank * held)), total, group)


def merge(mine: Tensor, group: ProcessGroup | None) -> Tensor:
    """Statistics of a rank's columns -> of the whole vocabulary; [3, tokens] each: peak, total, hit.

    peak: the largest logit of the columns that are not the row's target; total: the sum of exp(logit - peak)
    over them; hit: the target's logit, 0 where another rank has it. A rank without such columns brings peak
    -inf and total 0.
    """
    if group is None or dist.get_world_size(group) == 1:
        return mine
    parts = mine.new_empty(dist.get_world_size(group), *mine.shape)
    dist.all_gather(list(parts), mine.contiguous(), group=group)
    peaks, totals, hits = parts.unbind(dim=1)  # [ranks, tokens] each
    peak = peaks.amax(dim=0)
    anchor = peak.masked_fill(peak == float("-inf"), 0.0)
    return torch.stack([peak, (totals * (peaks - anchor).exp()).sum(dim=0), hits.sum(dim=0)])


def shares(statistics: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(anchor, rest, own): exp(anchor) times rest is the sum over the other columns, times own the
    target's."""
    peak, total, hit = statistics
    anchor = torch.maximum(peak, hit)
    return anchor, total * (peak - anchor).exp(), (hit - anchor).exp()


def row_loss(statistics: Tensor, target: Tensor, vocab_size: int, ignore_index: int, z_loss: float) -> Tensor:
    """The loss of each row, [tokens]: logsumexp - hit + z_loss * logsumexp^2; 0 where the row is ignored.

    A target that is no column of the vocabulary gives NaN: a loss that looks right would hide a wrong
    dataset.
    """
    anchor, rest, own = shares(statistics)
    hit = statistics[2]
    # log1p of the other columns' share: a confident row's small loss keeps its digits, which a sum that
    # already holds the target's 1 would have rounded away.
    loss = torch.where(hit >= anchor, rest.log1p(), (anchor - hit) + (rest + own).log())
    if z_loss:
        loss = loss + z_loss * (anchor + (rest + own).log()).square()
    loss = loss.masked_fill((target < 0) | (target >= vocab_size), float("nan"))
    return loss.masked_fill(target == ignore_index, 0.0)


def upstream_of_rows(upstream: Tensor, target: Tensor, vocab_size: int, ignore_index: int) -> Tensor:
    """The gradient given to each row's loss: 0 where the row is ignored, NaN as row_loss where its target is
    no column. [tokens]"""
    given = upstream.masked_fill((target < 0) | (target >= vocab_size), float("nan"))
    return given.masked_fill(target == ignore_index, 0.0)
