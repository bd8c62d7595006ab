"""Attention forward in Triton (Dao 2023, FlashAttention-2): online softmax over tiles of keys.

Plan. One program takes BLOCK_Q queries of one head; the longest programs start first. The keys that any of
them sees are walked in three loops: tiles that some query sees in part, tiles that all of them see whole (no
mask), and tiles in part again. Tiles outside of every query's range are never loaded. Exponentials are base
2, with log2(e) in the scale. Rows beyond the last token repeat the last one, so that every value stays
finite; they are not stored.

DESCRIPTORS: tensors come as TMA descriptors [tokens, columns] with a head's columns side by side (sm_90 and
newer; three dimensions would send the tiles through registers), else as pointers (ROCm lowers descriptors to
scalar loads). WIDTH is the dim padded to a power of two; descriptors need DIM == WIDTH.
"""

import triton
import triton.language as tl


@triton.jit
def load_tile(
    source, row, head, rows, row_stride, head_stride,
    DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, CLAMP: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """[BLOCK, WIDTH] from row `row` of a head; columns from DIM on are 0.

    CLAMP: rows from `rows` on repeat the last one (by descriptors: 0).
    """
    if DESCRIPTORS:
        return source.load([row, head * head_stride])
    else:  # Triton compiles one of the two branches, and without `else` what follows as well
        offset = row + tl.arange(0, BLOCK)
        if CLAMP:
            offset = tl.minimum(offset, rows - 1)
        column = tl.arange(0, WIDTH)
        # int64: 262,144 tokens of 64 heads of 128 pass 2^31 elements
        place = source + head.to(tl.int64) * head_stride + offset.to(tl.int64)[:, None] * row_stride
        if DIM == WIDTH:
            return tl.load(place + column[None, :])
        else:
            return tl.load(place + column[None, :], mask=(column < DIM)[None, :], other=0.0)


@triton.jit
def store_tile(
    target, tile, row, head, rows, row_stride, head_stride,
    DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Writes the rows below `rows` and the columns below DIM of a [BLOCK, WIDTH] tile."""
    if DESCRIPTORS:
        target.store([row, head * head_stride], tile.to(target.dtype))
    else:
        offset = row + tl.arange(0, BLOCK)
        column = tl.arange(0, WIDTH)
        place = target + head.to(tl.int64) * head_stride + offset.to(tl.int64)[:, None] * row_stride
        inside = (offset < rows)[:, None] & (column < DIM)[None, :]
        tl.store(place + column[None, :], tile.to(target.dtype.element_ty), mask=inside)


@triton.jit
def _keys(
    sums, total, peak, query, key, value, begin, end, key_begin, key_end, head, kv_tokens,
    key_row_stride, key_head_stride, value_row_stride, value_head_stride, scale,
    MASK: tl.constexpr, BLOCK_KV: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Takes the keys [begin, end) into the running sums of `BLOCK_Q` queries."""
    for first in tl.range(begin, end, BLOCK_KV):
        first = tl.multiple_of(first, BLOCK_KV)
        k = load_tile(
            key, first, head, kv_tokens, key_row_stride, key_head_stride, DIM, WIDTH,
            BLOCK_KV, MASK, DESCRIPTORS,
        )  # fmt: skip
        scores = tl.dot(query, tl.trans(k), input_precision="ieee") * scale  # [BLOCK_Q, BLOCK_KV]
        if MASK:
            column = first + tl.arange(0, BLOCK_KV)
            seen = (column[None, :] >= key_begin[:, None]) & (column[None, :] < key_end[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        # A query that has seen nothing yet has peak -inf: -inf - 0 keeps its weights 0 instead of NaN.
        anchor = tl.where(higher == float("-inf"), 0.0, higher) if MASK else higher
        weights = tl.exp2(scores - anchor[:, None])
        rescale = tl.exp2(peak - anchor)
        total = total * rescale + tl.sum(weights, 1)
        sums = sums * rescale[:, None]
        v = load_tile(
            value, first, head, kv_tokens, value_row_stride, value_head_stride, DIM, WIDTH, BLOCK_KV, MASK,
            DESCRIPTORS,
        )  # fmt: skip
        sums = tl.dot(weights.to(v.dtype), v, sums, input_precision="ieee")
        peak = higher
    return sums, total, peak


@triton.jit
def forward_kernel(
    query, key, value, out, logsumexp, key_begin, key_end, tokens, kv_tokens, scale,
    query_row_stride, query_head_stride, key_row_stride, key_head_stride,
    value_row_stride, value_head_stride, out_row_stride, out_head_stride,
    GROUP: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """out [tokens, heads, dim]; logsumexp [heads, tokens] float32, base 2; scale includes log2(e).

    GROUP query heads share a key head. Grid: (heads, blocks of queries).
    """
    head = tl.program_id(0)
    row = (tl.num_programs(1) - 1 - tl.program_id(1)) * BLOCK_Q
    offset = row + tl.arange(0, BLOCK_Q)
    clamped = tl.minimum(offset, tokens - 1)
    begins = tl.load(key_begin + clamped)
    ends = tl.load(key_end + clamped)
    first = tl.min(begins, 0) // BLOCK_KV * BLOCK_KV
    last = tl.max(ends, 0)
    # Between these two every query of the block sees every key.
    whole_first = tl.cdiv(tl.minimum(tl.max(begins, 0), last), BLOCK_KV) * BLOCK_KV
    whole_last = tl.maximum(tl.min(ends, 0) // BLOCK_KV * BLOCK_KV, whole_first)
    q = load_tile(
        query, row, head, tokens, query_row_stride, query_head_stride, DIM, WIDTH, BLOCK_Q, True, DESCRIPTORS
    )  # fmt: skip
    peak = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    sums = tl.zeros((BLOCK_Q, WIDTH), tl.float32)
    kv_head = head // GROUP
    for stage in tl.static_range(3):
        from_key = first if stage == 0 else whole_first if stage == 1 else whole_last
        to_key = whole_first if stage == 0 else whole_last if stage == 1 else last
        sums, total, peak = _keys(
            sums, total, peak, q, key, value, from_key, to_key, begins, ends, kv_head, kv_tokens,
            key_row_stride, key_head_stride, value_row_stride, value_head_stride, scale,
            stage != 1, BLOCK_KV, DIM, WIDTH, DESCRIPTORS,
        )  # fmt: skip
    store_tile(
        out, sums / total[:, None], row, head, tokens, out_row_stride, out_head_stride,
        DIM, WIDTH, BLOCK_Q, DESCRIPTORS,
    )  # fmt: skip
    tl.store(logsumexp + head.to(tl.int64) * tokens + offset, peak + tl.log2(total), mask=offset < tokens)
