"""Bugs of the cross-entropies, in one piece, split over ranks and in chunks; as attention_bugs.py."""

from bug import Bug

KERNELS, ROWS, STATISTICS = "loss/kernels.py", "loss/rows.py", "loss/statistics.py"
LINEAR, FUNCTIONS = "loss/linear.py", "loss/functions.py"
CROSS_ENTROPY, REFERENCE = "loss/cross_entropy.py", "reference.py"


def losses(impl: str = "triton", dtype: str = "float32", z_loss: float = 0.1) -> tuple[str, ...]:
    """Rows of 700 columns, 87 of them padding, with every fifth row ignored."""
    return (f"test_cross_entropy.py::test_losses_and_gradients[613-{z_loss}-torch.{dtype}-{impl}]",)


def linear(op: str, chunk_tokens: int = 7, impl: str = "reference", dtype: str = "float32") -> str:
    test = "test_cross_entropy.py::test_linear_losses_and_gradients"
    return f"{test}[torch.{dtype}-{chunk_tokens}-{impl}-{op}]"


def split(ranks: int) -> tuple[str, ...]:
    return (f"test_vocabulary_split.py::test_split_equals_whole[{ranks}]",)


BY_SUM = "linear_cross_entropy_sum"
POISONED = ("test_cross_entropy.py::test_ignored_rows_give_zero_whatever_they_hold[nan-triton]",)
MASKED = ("test_cross_entropy.py::test_large_and_masked_logits[triton]",)
FAR = ("test_cross_entropy.py::test_rows_beyond_32_bits",)
OUTSIDE = ("test_cross_entropy.py::test_a_target_outside_of_the_vocabulary_is_nan[613-reference]",)
IN_PLACE = ("test_cross_entropy.py::test_the_gradient_takes_the_logits_memory[reference]",)
CONFIDENT = ("test_cross_entropy.py::test_confident_rows_keep_their_precision[12.0-reference]",)
STRIDED = ("test_cross_entropy.py::test_strided_targets_and_upstream_weights[triton]",)
MANY_CHUNKS = ("test_cross_entropy.py::test_sum_of_many_chunks_is_kept_in_float32",)


def main_grad(op: str) -> tuple[str, ...]:
    return (f"test_cross_entropy.py::test_the_weight_gradient_joins_main_grad_once[{op}]",)


ROW_BUGS = (
    Bug(
        "z-loss's gradient without its 2", "z-loss factor", KERNELS,
        "slope = 2.0 * z_loss * (anchor", "slope = z_loss * (anchor", losses(),
    ),
    Bug(
        "torch's z-loss's gradient without its 2", "z-loss factor", REFERENCE,
        "slope = 2 * z_loss * (anchor", "slope = z_loss * (anchor", losses("reference"),
    ),
    Bug(
        "z-loss left out of the target's gradient", "z-loss factor", KERNELS,
        "given * (own * slope - rest) / sums", "given * (0.0 - rest) / sums", losses(),
    ),
    Bug(
        "z-loss is not squared", "z-loss factor", STATISTICS,
        "(anchor + (rest + own).log()).square()", "(anchor + (rest + own).log())", losses("reference"),
    ),
    Bug(
        "totals keep the old peak's scale", "missing rescale", KERNELS,
        "return higher, total * tl.exp(peak - anchor)", "return higher, total", losses(),
    ),
    Bug(
        "lanes are summed each at its own peak", "missing rescale", KERNELS,
        "tl.sum(total * tl.exp(peak - anchor), 0)", "tl.sum(total, 0)", losses(),
    ),
    Bug(
        "a lane that has seen only -inf turns NaN", "NaN", KERNELS,
        'anchor = tl.where(higher == float("-inf"), 0.0, higher)', "anchor = higher", MASKED,
    ),
    Bug(
        "an ignored row has a loss", "ignored row leaking", STATISTICS,
        "return loss.masked_fill(target == ignore_index, 0.0)", "return loss", losses("reference"),
    ),
    Bug(
        "an ignored row has a gradient", "ignored row leaking", STATISTICS,
        "return given.masked_fill(target == ignore_index, 0.0)", "return given", losses(),
    ),
    Bug(
        "an ignored row's NaN comes through a product with 0", "ignored row leaking", KERNELS,
        "counted = tl.where(given == 0.0, 0, valid)", "counted = valid", POISONED,
    ),
    Bug(
        "padding counts as vocabulary", "padding", STATISTICS,
        "max(0, min(held, total - rank * held))", "held", losses("reference"),
    ),
    Bug(
        "padding keeps its logits as gradient", "unwritten tail", KERNELS,
        "gradient.to(logits.dtype.element_ty), mask=column < columns)",
        "gradient.to(logits.dtype.element_ty), mask=column < counted)", losses(),
    ),
    Bug(
        "the last row's gradient runs beyond its end", "out of bounds", KERNELS,
        "gradient.to(logits.dtype.element_ty), mask=column < columns)",
        "gradient.to(logits.dtype.element_ty), mask=column < columns + 1)", losses(),
    ),
    Bug(
        "two rows write one row's statistics", "race", KERNELS,
        "tl.store(statistics + row, top)", "tl.store(statistics + row // 2 * 2, top)", losses(),
    ),
    Bug(
        "a target beyond the last column has a loss", "silent target", STATISTICS,
        "loss = loss.masked_fill((target < 0) | (target >= vocab_size)",
        "loss = loss.masked_fill((target < 0) | (target > vocab_size)",
        OUTSIDE,
    ),
    Bug(
        "offsets of rows in 32 bits, forward", "int32 overflow", KERNELS,
        "row = tl.program_id(0).to(tl.int64)  # int64", "row = tl.program_id(0)  # int64", FAR,
    ),
    Bug(
        "offsets of rows in 32 bits, backward", "int32 overflow", KERNELS,
        "row = tl.program_id(0).to(tl.int64)\n", "row = tl.program_id(0)\n", FAR,
    ),
    Bug(
        "the gradient goes to new memory", "copied gradient", CROSS_ENTROPY,
        "logits, target, statistics = ctx.saved_tensors\n",
        "logits, target, statistics = ctx.saved_tensors\n        logits = logits.clone()\n", IN_PLACE,
    ),
    Bug(
        "statistics in the logits' dtype", "lost precision", ROWS,
        "torch.empty(3, tokens, dtype=torch.float32", "torch.empty(3, tokens, dtype=logits.dtype",
        losses(dtype="bfloat16"),
    ),
    Bug(
        "torch's statistics in the logits' dtype", "lost precision", REFERENCE,
        ".to(wide(logits))  # [tokens, valid]", "  # [tokens, valid]", losses("reference", "bfloat16"),
    ),
    Bug(
        "a confident row's loss as a difference", "lost precision", STATISTICS,
        "rest.log1p()", "(anchor + (rest + own).log() - hit)", CONFIDENT,
    ),
    Bug(
        "strides of a part of the statistics are ignored", "stride", ROWS,
        "statistics.contiguous(), upstream", "statistics, upstream",
        (linear("linear_cross_entropy", impl="triton"),),
    ),
    Bug(
        "strides of a view of targets are ignored", "stride", ROWS,
        "_rows(logits), target.contiguous(), statistics, logits", "_rows(logits), target, statistics, logits",
        STRIDED,
    ),
    Bug(
        "the last part of a row is left out", "wrong skip", KERNELS,
        "if whole < valid:", "if whole > valid:", losses(),
    ),
    Bug(
        "a block that is not whole goes without a mask", "wrong skip", KERNELS,
        "whole = valid // BLOCK * BLOCK", "whole = tl.cdiv(valid, BLOCK) * BLOCK", losses(),
    ),
)  # fmt: skip

SPLIT_BUGS = (
    Bug(
        "the largest total of the ranks", "wrong group reduction", STATISTICS,
        "(totals * (peaks - anchor).exp()).sum(dim=0)", "(totals * (peaks - anchor).exp()).amax(dim=0)",
        split(2),
    ),
    Bug(
        "totals are summed each at its rank's peak", "wrong group reduction", STATISTICS,
        "(totals * (peaks - anchor).exp()).sum(dim=0)", "totals.sum(dim=0)", split(2),
    ),
    Bug(
        "the target's logit is averaged over the ranks", "wrong group reduction", STATISTICS,
        "hits.sum(dim=0)", "hits.mean(dim=0)", split(2),
    ),
    Bug(
        "a rank's first column is one off", "wrong group reduction", STATISTICS,
        "Columns(rank * held,", "Columns(rank * (held - 1),", split(2),
    ),
    Bug(
        "a rank of padding alone turns NaN", "NaN", KERNELS,
        'anchor = tl.where(top == float("-inf"), 0.0, top)', "anchor = top", split(4),
    ),
)  # fmt: skip

LINEAR_BUGS = (
    Bug(
        "the last chunk is dropped", "chunks", LINEAR,
        "range(0, tokens, chunk_tokens)", "range(0, tokens - tokens % chunk_tokens, chunk_tokens)",
        (linear(BY_SUM),),
    ),
    Bug(
        "chunks after the first are a row off", "chunks", LINEAR,
        "torch.mm(hidden[part], weight.T, out=logits)",
        "torch.mm(hidden.roll(1, 0)[part] if begin else hidden[part], weight.T, out=logits)",
        (linear(BY_SUM),),
    ),
    Bug(
        "the weight's gradient is the last chunk's", "chunks", LINEAR,
        "total.addmm_(left, hidden)", "total.addmm_(left, hidden, beta=0)", (linear(BY_SUM),),
    ),
    Bug(
        "the weight's gradient is summed in its own dtype, forward", "lost precision", LINEAR,
        "weight_gradient = weight.new_zeros(rows_of_gradient, weight.shape[1], dtype=wide(weight))",
        "weight_gradient = weight.new_zeros(rows_of_gradient, weight.shape[1])", MANY_CHUNKS,
    ),
    Bug(
        "the weight's gradient is summed in its own dtype, backward", "lost precision", FUNCTIONS,
        "total = torch.zeros_like(weight, dtype=wide(weight))", "total = torch.zeros_like(weight)",
        MANY_CHUNKS,
    ),
    Bug(
        "the scalar upstream is left out", "scale", FUNCTIONS,
        "(hidden_gradient.to(wide(hidden_gradient)) * upstream)", "hidden_gradient.to(wide(hidden_gradient))",
        (linear(BY_SUM),),
    ),
    Bug(
        "the scalar upstream is left out of main_grad", "main_grad", FUNCTIONS,
        "addcmul_(weight_gradient, upstream.to(weight_gradient.dtype))", "add_(weight_gradient)",
        main_grad(BY_SUM),
    ),
    Bug(
        "the forward adds to main_grad too", "main_grad", FUNCTIONS,
        "ctx.save_for_backward(weight, hidden_gradient, weight_gradient)\n",
        "ctx.save_for_backward(weight, hidden_gradient, weight_gradient)\n"
        "        if main_grad is not None:\n            main_grad += weight_gradient\n",
        main_grad(BY_SUM),
    ),
    Bug(
        "main_grad is not marked", "main_grad", FUNCTIONS,
        "weight.grad_added_to_main_grad = True", "weight.grad_added_to_main_grad = False",
        main_grad("linear_cross_entropy"),
    ),
    Bug(
        "main_grad is overwritten", "main_grad", FUNCTIONS,
        "total = ctx.main_grad\n", "total = ctx.main_grad\n"
        "            if total is not None:\n                total.zero_()\n",
        main_grad("linear_cross_entropy"),
    ),
)  # fmt: skip

LOSS_BUGS = (*ROW_BUGS, *SPLIT_BUGS, *LINEAR_BUGS)
