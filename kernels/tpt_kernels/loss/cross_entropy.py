"""cross_entropy: logits in memory, their gradient written over them.

torch refuses to register a gradient for an op that mutates, so the autograd function is written out here and
calls two opaque ops, which torch.compile traces past.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tpt_kernels.loss.rows import rows_of
from tpt_kernels.loss.statistics import Columns, merge, row_loss, upstream_of_rows
from tpt_kernels.reference import wide


@torch.library.custom_op("tpt_kernels::row_losses", mutates_args=())
def row_losses(
    logits: Tensor, target: Tensor, group: str | None, vocab_size: int | None, ignore_index: int,
    z_loss: float, impl: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Loss of each row [tokens], and the statistics of the whole vocabulary [3, tokens]; one all-gather over
    the group of that name."""
    columns = Columns.of(logits.shape[1], group, vocab_size)
    statistics = merge(rows_of(impl, logits).statistics(logits, target, columns), columns.group)
    return row_loss(statistics, target, columns.vocab_size, ignore_index, z_loss), statistics


@row_losses.register_fake
def _row_losses_shape(
    logits: Tensor, target: Tensor, group: str | None, vocab_size: int | None, ignore_index: int,
    z_loss: float, impl: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    tokens = logits.shape[0]
    return logits.new_empty(tokens, dtype=wide(logits)), logits.new_empty(3, tokens, dtype=wide(logits))


@torch.library.custom_op("tpt_kernels::logits_gradient_", mutates_args=("logits",))
def logits_gradient_(
    logits: Tensor, statistics: Tensor, target: Tensor, upstream: Tensor,
    group: str | None, vocab_size: int | None, ignore_index: int, z_loss: float, impl: str,
) -> None:  # fmt: skip
    """Writes the gradient of the rows' losses over this rank's logits."""
    columns = Columns.of(logits.shape[1], group, vocab_size)
    given = upstream_of_rows(upstream, target, columns.vocab_size, ignore_index)
    rows_of(impl, logits).gradient_(logits, statistics, target, given, columns, z_loss)


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
        loss: Tensor
        loss, statistics = row_losses(logits, target, group, vocab_size, ignore_index, z_loss, impl)
        ctx.save_for_backward(logits, target, statistics)
        ctx.rest = (group, vocab_size, ignore_index, z_loss, impl)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, statistics = ctx.saved_tensors
        logits_gradient_(logits, statistics, target, upstream, *ctx.rest)
        return logits, None, None, None, None, None, None
