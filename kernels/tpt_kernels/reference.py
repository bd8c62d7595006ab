"""Every op in obvious torch: the fallback, and the peer that tests and benchmarks compare with.

Statistics are float32 (or float64 for float64 inputs); a vocabulary split over `group` costs one
all-gather of three numbers a row.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

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
) -> Tensor:
    """As tpt_kernels.attention, with the whole score matrix in memory."""
    del max_seqlen  # only kernels need it
    tokens, groups = key.shape[0], query.shape[1] // key.shape[1]
    positions = torch.arange(tokens, device=key.device)  # [kv_tokens]
    document = torch.searchsorted(cu_seqlens[1:].long(), positions, right=True)  # [kv_tokens]
    placed = positions if query_positions is None else query_positions.long()  # [tokens]
    visible = (document[placed][:, None] == document[None]) & (placed[:, None] >= positions[None])
    k, v = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, k).to(_wide(query))
    scores = scores * (query.shape[2] ** -0.5 if scale is None else scale)
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1).to(query.dtype)
    return torch.einsum("hqk,khd->qhd", weights, v)


def cross_entropy(
    logits: Tensor, target: Tensor, *, group: ProcessGroup | None, options: LossOptions
) -> Tensor:
    """As tpt_kernels.cross_entropy."""
    loss: Tensor = _CrossEntropy.apply(logits, target, group, options)  # type: ignore[no-untyped-call]
    return loss


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, target: Tensor, *, group: ProcessGroup | None, options: LossOptions
) -> Tensor:
    """As tpt_kernels.linear_cross_entropy; logits are made again in the backward, chunk by chunk."""
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, target, group, options)  # type: ignore[no-untyped-call]
    return loss


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _first_column(columns: int, group: ProcessGroup | None) -> int:
    return 0 if group is None else dist.get_rank(group) * columns


def _local_logits(logits: Tensor, group: ProcessGroup | None, options: LossOptions) -> Tensor:
    """This rank's columns in wide precision, padding columns at -inf. [tokens, vocab / tensor]"""
    logits = logits.to(_wide(logits))
    first = _first_column(logits.shape[1], group)
    if options.vocab_size is None or options.vocab_size >= first + logits.shape[1]:
        return logits
    padding = torch.arange(logits.shape[1], device=logits.device) + first >= options.vocab_size
    return logits.masked_fill(padding, float("-inf"))


def _local_target(target: Tensor, columns: int, group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Where the target is among this rank's columns (0 where it is not), and whether it is. [tokens] each"""
    local = target - _first_column(columns, group)
    here = (local >= 0) & (local < columns)
    return local.where(here, 0), here


def _row_statistics(logits: Tensor, target: Tensor, group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """logsumexp and target logit of each row over the whole vocabulary. [tokens] each"""
    local, here = _local_target(target, logits.shape[1], group)
    peak = logits.amax(dim=1)
    # A rank that holds padding alone has peak -inf: exp(-inf - 0) = 0 keeps its sum 0 instead of NaN.
    total = (logits - peak.clamp_min(torch.finfo(logits.dtype).min)[:, None]).exp().sum(dim=1)
    hit = logits.gather(1, local[:, None]).squeeze(1).where(here, 0)
    if group is None or dist.get_world_size(group) == 1:
        return peak + total.log(), hit
    mine = torch.stack([peak, total, hit])  # [3, tokens]
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, mine, group=group)
    peaks, totals, hits = torch.stack(parts, dim=1)  # [tensor, tokens] each
    top = peaks.amax(dim=0)
    return top + (totals * (peaks - top).exp()).sum(dim=0).log(), hits.sum(dim=0)


def _row_loss(logsumexp: Tensor, hit: Tensor, target: Tensor, options: LossOptions) -> Tensor:
    loss = logsumexp - hit + options.z_loss * logsumexp.square()
    return loss.masked_fill(target == options.ignore_index, 0.0)


def _logits_gradient(
    logits: Tensor, logsumexp: Tensor, target: Tensor, upstream: Tensor,
    group: ProcessGroup | None, options: LossOptions,
) -> Tensor:  # fmt: skip
    """d loss / d logits of this rank's columns; `logits` (wide) is overwritten."""
    upstream = upstream.to(logits.dtype).masked_fill(target == options.ignore_index, 0.0)
    factor = upstream * (1 + 2 * options.z_loss * logsumexp)
    gradient = logits.sub_(logsumexp[:, None]).exp_().mul_(factor[:, None])
    local, here = _local_target(target, logits.shape[1], group)
    return gradient.scatter_add_(1, local[:, None], -upstream.where(here, 0)[:, None])


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, group: ProcessGroup | None, options: LossOptions
    ) -> Tensor:
        logsumexp, hit = _row_statistics(_local_logits(logits, group, options), target, group)
        ctx.save_for_backward(logits, target, logsumexp)
        ctx.group, ctx.options = group, options
        return _row_loss(logsumexp, hit, target, options)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        logits, target, logsumexp = ctx.saved_tensors
        wide = _local_logits(logits, ctx.group, ctx.options)
        wide = wide.clone() if wide is logits else wide
        gradient = _logits_gradient(wide, logsumexp, target, upstream, ctx.group, ctx.options)
        return gradient.to(logits.dtype), None, None, None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor,
        group: ProcessGroup | None, options: LossOptions,
    ) -> Tensor:  # fmt: skip
        logsumexp, hit = [], []
        for h, t in zip(*(torch.split(x, options.chunk_tokens) for x in (hidden, target)), strict=True):
            rows = _row_statistics(_local_logits(h @ weight.T, group, options), t, group)
            logsumexp.append(rows[0])
            hit.append(rows[1])
        ctx.save_for_backward(hidden, weight, target, torch.cat(logsumexp))
        ctx.group, ctx.options = group, options
        return _row_loss(torch.cat(logsumexp), torch.cat(hit), target, options)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden, weight, target, logsumexp = ctx.saved_tensors
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight, dtype=_wide(weight))  # summed over chunks: float32
        for begin in range(0, hidden.shape[0], ctx.options.chunk_tokens):
            rows = slice(begin, begin + ctx.options.chunk_tokens)
            logits = _local_logits(hidden[rows] @ weight.T, ctx.group, ctx.options)
            gradient = _logits_gradient(
                logits, logsumexp[rows], target[rows], upstream[rows], ctx.group, ctx.options
            ).to(hidden.dtype)
            hidden_gradient[rows] = gradient @ weight
            weight_gradient += gradient.T @ hidden[rows]
        return hidden_gradient, weight_gradient.to(weight.dtype), None, None, None
