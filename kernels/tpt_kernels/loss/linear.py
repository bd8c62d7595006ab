"""The linear cross-entropies: hidden @ weight.T a chunk of rows at a time, never the batch's logits at once.

The matrix products are the vendor's library's; what is ours are the row functions between them. Two ways:
`recompute` makes the logits again in the backward (4 products; any upstream weight per token),
`with_gradients` makes the gradients in the forward (3 products; one scalar upstream). Memory beyond the
gradients: one chunk of logits, whose memory the logits' gradient takes over.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from tpt_kernels.loss.rows import rows_of
from tpt_kernels.loss.statistics import Columns, merge, row_loss, upstream_of_rows
from tpt_kernels.reference import wide

SLICE_COLUMNS = 8192  # where the library cannot accumulate: 0.24 GB of float32 copies at 4,096 x 2,048 rows


@torch.library.custom_op("tpt_kernels::linear_row_losses", mutates_args=())
def linear_row_losses(
    hidden: Tensor, weight: Tensor, target: Tensor, group: str | None, vocab_size: int | None,
    ignore_index: int, z_loss: float, chunk_tokens: int, impl: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Loss of each row [tokens] of hidden @ weight.T, and the statistics [3, tokens] of the whole vocabulary;
    one all-gather for the batch."""
    columns = Columns.of(weight.shape[0], group, vocab_size)
    rows = rows_of(impl, hidden)
    mine = hidden.new_empty(3, hidden.shape[0], dtype=wide(hidden))
    for part, logits in _chunks_of_logits(hidden, weight, chunk_tokens):
        mine[:, part] = rows.statistics(logits, target[part], columns)
    statistics = merge(mine, columns.group)
    loss = row_loss(statistics, target, columns.vocab_size, ignore_index, z_loss)
    return loss, statistics


@linear_row_losses.register_fake
def _linear_row_losses_shape(
    hidden: Tensor, weight: Tensor, target: Tensor, group: str | None, vocab_size: int | None,
    ignore_index: int, z_loss: float, chunk_tokens: int, impl: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    tokens = hidden.shape[0]
    return hidden.new_empty(tokens, dtype=wide(hidden)), hidden.new_empty(3, tokens, dtype=wide(hidden))


@torch.library.custom_op("tpt_kernels::linear_gradients_", mutates_args=("weight_gradient",))
def linear_gradients_(
    hidden: Tensor, weight: Tensor, target: Tensor, statistics: Tensor, upstream: Tensor,
    weight_gradient: Tensor | None, group: str | None, vocab_size: int | None, ignore_index: int,
    z_loss: float, chunk_tokens: int, impl: str,
) -> Tensor:  # fmt: skip
    """The backward of `recompute`: adds to weight_gradient (wide), returns this rank's part of hidden's.

    upstream [tokens].
    """
    columns = Columns.of(weight.shape[0], group, vocab_size)
    rows = rows_of(impl, hidden)
    given = upstream_of_rows(upstream, target, columns.vocab_size, ignore_index)
    hidden_gradient = torch.empty_like(hidden)
    for part, logits in _chunks_of_logits(hidden, weight, chunk_tokens):
        rows.gradient_(logits, statistics[:, part], target[part], given[part], columns, z_loss)
        torch.mm(logits, weight, out=hidden_gradient[part])
        if weight_gradient is not None:
            accumulate_(weight_gradient, logits, hidden[part])
    return hidden_gradient


@linear_gradients_.register_fake
def _linear_gradients_shape(
    hidden: Tensor, weight: Tensor, target: Tensor, statistics: Tensor, upstream: Tensor,
    weight_gradient: Tensor | None, group: str | None, vocab_size: int | None, ignore_index: int,
    z_loss: float, chunk_tokens: int, impl: str,
) -> Tensor:  # fmt: skip
    return torch.empty_like(hidden)


@torch.library.custom_op("tpt_kernels::linear_loss_and_gradients", mutates_args=())
def linear_loss_and_gradients(
    hidden: Tensor, weight: Tensor, target: Tensor, token_weight: Tensor,
    with_weight: bool, group: str | None, vocab_size: int | None, ignore_index: int, z_loss: float,
    chunk_tokens: int, impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The forward of `with_gradients`: loss [tokens], and of sum(token_weight * loss) this rank's part of
    hidden's gradient [tokens, hidden] and the weight's [vocab / tensor, hidden] (wide; [0, hidden] if not
    `with_weight`)."""
    columns = Columns.of(weight.shape[0], group, vocab_size)
    rows = rows_of(impl, hidden)
    loss = hidden.new_empty(hidden.shape[0], dtype=wide(hidden))
    hidden_gradient = torch.empty_like(hidden)
    rows_of_gradient = weight.shape[0] if with_weight else 0
    weight_gradient = weight.new_zeros(rows_of_gradient, weight.shape[1], dtype=wide(weight))
    given = upstream_of_rows(token_weight, target, columns.vocab_size, ignore_index)
    for part, logits in _chunks_of_logits(hidden, weight, chunk_tokens):
        wanted = target[part]
        statistics = merge(rows.statistics(logits, wanted, columns), columns.group)
        loss[part] = row_loss(statistics, wanted, columns.vocab_size, ignore_index, z_loss)
        rows.gradient_(logits, statistics, wanted, given[part], columns, z_loss)
        torch.mm(logits, weight, out=hidden_gradient[part])
        if with_weight:
            accumulate_(weight_gradient, logits, hidden[part])
    return loss, hidden_gradient, weight_gradient


@linear_loss_and_gradients.register_fake
def _linear_loss_and_gradients_shape(
    hidden: Tensor, weight: Tensor, target: Tensor, token_weight: Tensor,
    with_weight: bool, group: str | None, vocab_size: int | None, ignore_index: int, z_loss: float,
    chunk_tokens: int, impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    loss = hidden.new_empty(hidden.shape[0], dtype=wide(hidden))
    columns = weight.shape[0] if with_weight else 0
    return loss, torch.empty_like(hidden), weight.new_empty(columns, weight.shape[1], dtype=wide(weight))


def accumulate_(total: Tensor, logits_gradient: Tensor, hidden: Tensor) -> None:
    """total += logits_gradient.T @ hidden, summed in total's dtype; total [columns, hidden]."""
    left = logits_gradient.T
    if left.dtype == total.dtype:
        total.addmm_(left, hidden)
    elif total.device.type == "cpu":
        total.addmm_(left.to(total.dtype), hidden.to(total.dtype))
    else:
        _accumulate_wide_(total, left, hidden)


def _accumulate_wide_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """bf16 or fp16 product added to a float32 sum inside the library's kernel, without a temporary."""
    try:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    except RuntimeError as error:
        if "dtype" not in str(error):
            raise
        # A torch, or a ROCm library, that has no float32 sum of such a product, and says so.
        for begin in range(0, total.shape[0], SLICE_COLUMNS):
            rows = slice(begin, begin + SLICE_COLUMNS)
            total[rows] += left[rows].to(total.dtype) @ right.to(total.dtype)


def _chunks_of_logits(hidden: Tensor, weight: Tensor, chunk_tokens: int) -> Iterator[tuple[slice, Tensor]]:
    """Each chunk of rows with its logits, all in one buffer: a chunk's are gone when the next is taken."""
    tokens = hidden.shape[0]
    buffer = hidden.new_empty(min(chunk_tokens, tokens), weight.shape[0])
    for begin in range(0, tokens, chunk_tokens):
        part = slice(begin, min(begin + chunk_tokens, tokens))
        logits = buffer[: part.stop - begin]
        torch.mm(hidden[part], weight.T, out=logits)
        yield part, logits
