"""Triton kernels of cross-entropy: one program a row, two passes over the logits, one write.

Plan. Forward: an online softmax with one running maximum and sum per lane, so that a row costs one reduction
at its end. Backward: the row is read once more and its gradient written over it, rounded once. Whole blocks
go without a mask: a mask on a vocabulary that is no multiple of 16 would cut 16-byte loads into single ones.
Statistics are float32; there are no atomics, and a row's order of summation never changes.
"""

import triton
import triton.language as tl


@triton.jit
def _absorb(peak, total, logits, begin, valid, local, BLOCK: tl.constexpr, MASK: tl.constexpr):
    """A block of columns taken into each lane's running peak and total; the target's column is left out."""
    column = begin + tl.arange(0, BLOCK)
    if MASK:
        x = tl.load(logits + column, mask=column < valid, other=float("-inf"))
    else:
        x = tl.load(logits + column)
    x = tl.where(column == local, float("-inf"), x.to(tl.float32))
    higher = tl.maximum(peak, x)
    # A lane that has seen only -inf keeps total 0: exp(-inf - 0), not exp(-inf + inf).
    anchor = tl.where(higher == float("-inf"), 0.0, higher)
    return higher, total * tl.exp(peak - anchor) + tl.exp(x - anchor)


@triton.jit
def statistics_kernel(
    logits, target, statistics, row_stride, tokens, valid, first, BLOCK: tl.constexpr,
):  # fmt: skip
    """Peak and total of a row's other columns and its target's logit -> statistics [3, tokens] float32.

    logits [tokens, columns], rows `row_stride` apart; `valid` columns are vocabulary, the first has id
    `first`.
    """
    row = tl.program_id(0).to(tl.int64)  # int64: 8,192 rows of 300,000 columns pass 2^31
    logits += row * row_stride
    local = tl.load(target + row) - first
    peak = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    whole = valid // BLOCK * BLOCK
    for begin in tl.range(0, whole, BLOCK):
        peak, total = _absorb(peak, total, logits, begin, valid, local, BLOCK, False)
    if whole < valid:
        peak, total = _absorb(peak, total, logits, whole, valid, local, BLOCK, True)
    top = tl.max(peak, 0)
    anchor = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(total * tl.exp(peak - anchor), 0)
    here = (local >= 0) & (local < valid)
    hit = tl.load(logits + tl.where(here, local, 0), mask=here, other=0.0).to(tl.float32)
    tl.store(statistics + row, top)
    tl.store(statistics + tokens + row, total)
    tl.store(statistics + 2 * tokens + row, hit)


@triton.jit
def _overwrite(
    logits, begin, columns, counted, local, anchor, factor, of_target, BLOCK: tl.constexpr, MASK: tl.constexpr
):
    """A block of logits becomes its gradient; columns from `counted` on get 0."""
    column = begin + tl.arange(0, BLOCK)
    if MASK:
        x = tl.load(logits + column, mask=column < counted, other=float("-inf"))
    else:
        x = tl.load(logits + column)
    gradient = tl.where(column == local, of_target, factor * tl.exp(x.to(tl.float32) - anchor))
    if MASK:
        gradient = tl.where(column < counted, gradient, 0.0)
        tl.store(logits + column, gradient.to(logits.dtype.element_ty), mask=column < columns)
    else:
        tl.store(logits + column, gradient.to(logits.dtype.element_ty))


@triton.jit
def gradient_kernel(
    logits, target, statistics, upstream, row_stride, tokens, columns, valid, first, z_loss,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of a row's loss written over its logits; padding columns and ignored rows get 0.

    statistics [3, tokens] float32 of the whole vocabulary; upstream [tokens] float32, 0 for an ignored row.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    peak = tl.load(statistics + row)
    hit = tl.load(statistics + 2 * tokens + row)
    anchor = tl.maximum(peak, hit)
    rest = tl.load(statistics + tokens + row) * tl.exp(peak - anchor)
    own = tl.exp(hit - anchor)
    sums = rest + own
    given = tl.load(upstream + row)
    slope = 2.0 * z_loss * (anchor + tl.log(sums))
    factor = given * (1.0 + slope) / sums
    of_target = given * (own * slope - rest) / sums  # softmax - 1 is -rest / sums, without cancellation
    local = tl.load(target + row) - first
    # In an ignored row no column counts: a product with 0 would keep the inf or NaN that it may hold.
    counted = tl.where(given == 0.0, 0, valid)
    whole = counted // BLOCK * BLOCK
    for begin in tl.range(0, whole, BLOCK):
        _overwrite(logits, begin, columns, counted, local, anchor, factor, of_target, BLOCK, False)
    for begin in tl.range(whole, columns, BLOCK):
        _overwrite(logits, begin, columns, counted, local, anchor, factor, of_target, BLOCK, True)
