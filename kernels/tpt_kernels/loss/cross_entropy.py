"""cross_entropy: logits in memory, their gradient written over them.

torch refuses to register a gradient for an op that mutates, so the autograd function is written out here and
calls two opaque ops, which torch.compile traces past.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tpt_kernels.loss.rows import rows_of
from tpt_kernels.loss.statistics import Columns, merge, row_loss


@torch.library.custom_op("tpt_kernels::row_statistics", mutates_args=())
def row_statistics(
    logits: Tensor, target: Tensor, group: str | None, vocab_size: int | None, impl: str
) -> Tensor:
    """Statistics of the whole vocabulary, [3, tokens]; one all-gather over the group of that name."""
    columns = Columns.of(logits.shape[1], group, vocab_size)
    mine = rows_of(impl, logits.device).statistics(logits, target, columns)
    return merge(mine, columns.group)


@row_statistics.register_fake
def _row_statistics_shape(
    logits: Tensor, target: Tensor, group: str | None, vocab_size: int | None, impl: str
) -> Tensor:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.new_empty(3, logits.shape[0], dtype=dtype)


@torch.library.custom_op("tpt_kernels::logits_gradient_", mutates_args=("logits",))
def logits_gradient_(
    logits: Tensor, statistics: Tensor, target: Tensor, upstream: Tensor,
    group: str | None, vocab_size: int | None, ignore_index: int, z_loss: float, impl: str,
) -> None:  # fmt: skip
    """Writes the gradient of the rows' losses over this rank's logits."""
    columns = Columns.of(logits.shape[1], group, vocab_size)
    rows_of(impl, logits.device).gradient_(
        logits, statistics, target, upstream, columns, ignore_index, z_loss
    )


class CrossEntropy(torch.autograd.Function):
    """(logits, target, group's name, vocab_size, ignore_index, z_loss, impl) -> loss [tokens].

    Its backward overwrites the logits; torch's version counter then refuses a second backward, or another
    op's that had saved the same logits, by name.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, group: str | None, vocab_size: int | None,
        ignore_index: int, z_loss: float, impl: str,
    ) -> Tensor:  # fmt: skip
        statistics = row_statistics(logits, target, group, vocab_size, impl)
        ctx.save_for_backward(logits, target, statistics)
        ctx.rest = (group, vocab_size, ignore_index, z_loss, impl)
        whole = Columns.of(logits.shape[1], group, vocab_size).vocab_size
        return row_loss(statistics, target, whole, ignore_index, z_loss)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, statistics = ctx.saved_tensors
        logits_gradient_(logits, statistics, target, upstream, *ctx.rest)
        return logits, None, None, None, None, None, None
