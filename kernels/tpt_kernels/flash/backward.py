"""Attention backward in Triton: two kernels, no atomics, so that the same inputs give the same bits.

Plan. `delta_kernel` sums out * d_out per query. `key_value_kernel`: a program owns BLOCK_KV keys of one key
head and walks, in one flat loop, the queries that see them in every query head of its group (one copy of the
body keeps the registers of sm_90 from spilling). `query_kernel`: a program owns BLOCK_Q queries of one head
and walks their keys. Scores are made twice, 7 matrix products instead of 5; the price of a fixed order.
"""

import triton
import triton.language as tl

from tpt_kernels.flash.forward import load_tile, store_tile


@triton.jit
def delta_kernel(
    out, out_gradient, delta, tokens, row_stride, head_stride, gradient_row_stride, gradient_head_stride,
    DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """delta [heads, tokens] float32 = the sum of out * d_out over dim. Grid: (heads, blocks of queries)."""
    head = tl.program_id(0)
    row = tl.program_id(1) * BLOCK_Q
    a = load_tile(out, row, head, tokens, row_stride, head_stride, DIM, WIDTH, BLOCK_Q, True, False)
    b = load_tile(
        out_gradient, row, head, tokens, gradient_row_stride, gradient_head_stride, DIM, WIDTH,
        BLOCK_Q, True, False,
    )  # fmt: skip
    offset = row + tl.arange(0, BLOCK_Q)
    sums = tl.sum(a.to(tl.float32) * b.to(tl.float32), 1)
    tl.store(delta + head.to(tl.int64) * tokens + offset, sums, mask=offset < tokens)


@triton.jit
def key_value_kernel(
    query, key, value, out_gradient, key_gradient, value_gradient, logsumexp, delta, query_begin, query_end,
    tokens, kv_tokens, scale, scale_base2,
    query_row_stride, query_head_stride, key_row_stride, key_head_stride, value_row_stride, value_head_stride,
    gradient_row_stride, gradient_head_stride, result_row_stride, result_head_stride,
    GROUP: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """key_gradient and value_gradient [kv_tokens, kv_heads, dim], equal strides.

    Grid: (key heads, blocks of keys); the first blocks are seen by the most queries and start first.
    """
    kv_head = tl.program_id(0)
    row = tl.program_id(1) * BLOCK_KV
    k = load_tile(
        key, row, kv_head, kv_tokens, key_row_stride, key_head_stride, DIM, WIDTH, BLOCK_KV, True, DESCRIPTORS
    )  # fmt: skip
    v = load_tile(
        value, row, kv_head, kv_tokens, value_row_stride, value_head_stride, DIM, WIDTH,
        BLOCK_KV, True, DESCRIPTORS,
    )  # fmt: skip
    clamped = tl.minimum(row + tl.arange(0, BLOCK_KV), kv_tokens - 1)
    begins = tl.load(query_begin + clamped)
    ends = tl.load(query_end + clamped)
    first = tl.min(begins, 0) // BLOCK_Q * BLOCK_Q
    blocks = tl.maximum(tl.cdiv(tl.max(ends, 0) - first, BLOCK_Q), 0)
    dk = tl.zeros((BLOCK_KV, WIDTH), tl.float32)
    dv = tl.zeros((BLOCK_KV, WIDTH), tl.float32)
    divisor = tl.maximum(blocks, 1)  # a pipelined loop makes its first addresses even if it has no steps
    for step in tl.range(0, blocks * GROUP):
        head = kv_head * GROUP + step // divisor
        begin = first + step % divisor * BLOCK_Q
        offset = begin + tl.arange(0, BLOCK_Q)
        statistics = head.to(tl.int64) * tokens
        inside = offset < tokens
        q = load_tile(
            query, begin, head, tokens, query_row_stride, query_head_stride, DIM, WIDTH,
            BLOCK_Q, True, DESCRIPTORS,
        )  # fmt: skip
        do = load_tile(
            out_gradient, begin, head, tokens, gradient_row_stride, gradient_head_stride, DIM, WIDTH, BLOCK_Q,
            True, DESCRIPTORS,
        )  # fmt: skip
        scores = tl.dot(k, tl.trans(q), input_precision="ieee") * scale_base2  # [BLOCK_KV, BLOCK_Q]
        lse = tl.load(logsumexp + statistics + offset, mask=inside, other=0.0)
        weights = tl.exp2(scores - lse[None, :])
        seen = (offset[None, :] >= begins[:, None]) & (offset[None, :] < ends[:, None])
        weights = tl.where(seen, weights, 0.0)
        dv = tl.dot(weights.to(do.dtype), do, dv, input_precision="ieee")
        sums = tl.load(delta + statistics + offset, mask=inside, other=0.0)
        slope = tl.dot(v, tl.trans(do), input_precision="ieee") - sums[None, :]
        dk = tl.dot((weights * slope).to(q.dtype), q, dk, input_precision="ieee")
    store_tile(
        key_gradient, dk * scale, row, kv_head, kv_tokens, result_row_stride, result_head_stride,
        DIM, WIDTH, BLOCK_KV, DESCRIPTORS,
    )  # fmt: skip
    store_tile(
        value_gradient, dv, row, kv_head, kv_tokens, result_row_stride, result_head_stride,
        DIM, WIDTH, BLOCK_KV, DESCRIPTORS,
    )  # fmt: skip


@triton.jit
def query_kernel(
    query, key, value, out_gradient, query_gradient, logsumexp, delta, key_begin, key_end,
    tokens, kv_tokens, scale, scale_base2,
    query_row_stride, query_head_stride, key_row_stride, key_head_stride, value_row_stride, value_head_stride,
    gradient_row_stride, gradient_head_stride, result_row_stride, result_head_stride,
    GROUP: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """query_gradient [tokens, heads, dim]. Grid: (heads, blocks of queries), the longest first."""
    head = tl.program_id(0)
    kv_head = head // GROUP
    row = (tl.num_programs(1) - 1 - tl.program_id(1)) * BLOCK_Q
    clamped = tl.minimum(row + tl.arange(0, BLOCK_Q), tokens - 1)
    begins = tl.load(key_begin + clamped)
    ends = tl.load(key_end + clamped)
    place = head.to(tl.int64) * tokens + clamped
    lse = tl.load(logsumexp + place)
    sums = tl.load(delta + place)
    q = load_tile(
        query, row, head, tokens, query_row_stride, query_head_stride, DIM, WIDTH, BLOCK_Q, True, DESCRIPTORS
    )  # fmt: skip
    do = load_tile(
        out_gradient, row, head, tokens, gradient_row_stride, gradient_head_stride, DIM, WIDTH, BLOCK_Q, True,
        DESCRIPTORS,
    )  # fmt: skip
    dq = tl.zeros((BLOCK_Q, WIDTH), tl.float32)
    for first in tl.range(tl.min(begins, 0) // BLOCK_KV * BLOCK_KV, tl.max(ends, 0), BLOCK_KV):
        k = load_tile(
            key, first, kv_head, kv_tokens, key_row_stride, key_head_stride, DIM, WIDTH,
            BLOCK_KV, True, DESCRIPTORS,
        )  # fmt: skip
        v = load_tile(
            value, first, kv_head, kv_tokens, value_row_stride, value_head_stride, DIM, WIDTH, BLOCK_KV, True,
            DESCRIPTORS,
        )  # fmt: skip
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_base2  # [BLOCK_Q, BLOCK_KV]
        column = first + tl.arange(0, BLOCK_KV)
        seen = (column[None, :] >= begins[:, None]) & (column[None, :] < ends[:, None])
        weights = tl.where(seen, tl.exp2(scores - lse[:, None]), 0.0)
        slope = tl.dot(do, tl.trans(v), input_precision="ieee") - sums[:, None]
        dq = tl.dot((weights * slope).to(k.dtype), k, dq, input_precision="ieee")
    store_tile(
        query_gradient, dq * scale, row, head, tokens, result_row_stride, result_head_stride,
        DIM, WIDTH, BLOCK_Q, DESCRIPTORS,
    )  # fmt: skip
