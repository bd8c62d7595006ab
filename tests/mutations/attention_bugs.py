"""Bugs of attention, forward and backward: each has to be caught by a test of tests/kernels."""

from bug import Bug

FORWARD, BACKWARD = "flash/forward.py", "flash/backward.py"
LAUNCH, RANGES = "flash/launch.py", "flash/ranges.py"


def tiles(*names: str, case: str = "97-4-1-torch.float32") -> tuple[str, ...]:
    """Four ragged documents in 97 tokens, by the tiles of those names."""
    return tuple(f"test_attention.py::test_every_kind_of_tile[{case}-{name}]" for name in names)


TALL = tiles("descriptors 64x32")  # 0.5 s; queries of several documents in one program
POINTERS = tiles("pointers 64x16")
GROUPED = tiles("descriptors 64x32", case="130-3-2-torch.float32")  # four heads on two
PLACED = ("test_attention.py::test_placed_queries[placed0-descriptors 64x32]",)
FAR = ("test_attention.py::test_offsets_beyond_32_bits",)
VIEWS = ("test_attention.py::test_views_of_a_larger_tensor[pointers 32x32]",)
DIM_24 = ("test_attention.py::test_head_dims_and_dtypes[24-torch.bfloat16-pointers 32x32]",)
DIM_96 = ("test_attention.py::test_head_dims_and_dtypes[96-torch.bfloat16-pointers 32x32]",)

MASKS = (
    Bug(
        "a query sees the next key", "mask off by one", FORWARD,
        "(column[None, :] < key_end[:, None])", "(column[None, :] <= key_end[:, None])", TALL,
    ),
    Bug(
        "a query does not see itself", "mask off by one", RANGES,
        "Ranges(begin, keys + 1, keys, end)", "Ranges(begin, keys, keys, end)", TALL,
    ),
    Bug(
        "a document's first key is not seen", "mask off by one", FORWARD,
        "(column[None, :] >= key_begin[:, None])", "(column[None, :] > key_begin[:, None])", TALL,
    ),
    Bug(
        "a document's first token counts as the last one's", "mask off by one", RANGES,
        "searchsorted(bounds[1:], keys, right=True)", "searchsorted(bounds[1:], keys)", TALL,
    ),
    Bug(
        "the next key has a part in a query's gradient", "mask off by one", BACKWARD,
        "(column[None, :] < ends[:, None])", "(column[None, :] <= ends[:, None])", TALL,
    ),
    Bug(
        "a key's own query gives it no gradient", "mask off by one", BACKWARD,
        "(offset[None, :] >= begins[:, None])", "(offset[None, :] > begins[:, None])", TALL,
    ),
    Bug(
        "a document's last query gives its keys no gradient", "mask off by one", RANGES,
        "Ranges(begin, keys + 1, keys, end)", "Ranges(begin, keys + 1, keys, end - 1)", TALL,
    ),
    Bug(
        "a placed query gives the key at its place no gradient", "placed queries", RANGES,
        "torch.searchsorted(positions, x, out_int32=True)",
        "torch.searchsorted(positions, x, out_int32=True, right=True)", PLACED,
    ),
    Bug(
        "placed queries have the documents of the first tokens", "placed queries", RANGES,
        "Ranges(begin[positions], positions + 1,", "Ranges(begin[: len(positions)], positions + 1,", PLACED,
    ),
)  # fmt: skip

SKIPS = (
    Bug(
        "the keys before some query's document are not masked", "wrong skip", FORWARD,
        "tl.minimum(tl.max(begins, 0), last)", "tl.minimum(tl.min(begins, 0), last)", POINTERS,
    ),
    Bug(
        "the last tile of whole keys is one too far", "wrong skip", FORWARD,
        "tl.min(ends, 0) // BLOCK_KV * BLOCK_KV", "tl.cdiv(tl.min(ends, 0), BLOCK_KV) * BLOCK_KV", DIM_24,
    ),
    Bug(
        "the tile in which a document begins is skipped", "wrong skip", FORWARD,
        "first = tl.min(begins, 0) // BLOCK_KV * BLOCK_KV",
        "first = tl.cdiv(tl.min(begins, 0), BLOCK_KV) * BLOCK_KV", POINTERS,
    ),
    Bug(
        "the last tile of queries is skipped for a key's gradient", "wrong skip", BACKWARD,
        "tl.cdiv(tl.max(ends, 0) - first, BLOCK_Q)", "((tl.max(ends, 0) - first) // BLOCK_Q)", TALL,
    ),
    Bug(
        "the first tile of queries is skipped for a key's gradient", "wrong skip", BACKWARD,
        "first = tl.min(begins, 0) // BLOCK_Q * BLOCK_Q",
        "first = tl.cdiv(tl.min(begins, 0), BLOCK_Q) * BLOCK_Q", TALL,
    ),
    Bug(
        "the first tile of keys is skipped for a query's gradient", "wrong skip", BACKWARD,
        "tl.range(tl.min(begins, 0) // BLOCK_KV * BLOCK_KV,",
        "tl.range(tl.cdiv(tl.min(begins, 0), BLOCK_KV) * BLOCK_KV,", TALL,
    ),
)  # fmt: skip

ARITHMETIC = (
    Bug(
        "sums keep the old peak's scale", "missing rescale", FORWARD,
        "sums = sums * rescale[:, None]", "sums = sums * 1.0", TALL,
    ),
    Bug(
        "the total keeps the old peak's scale", "missing rescale", FORWARD,
        "total = total * rescale + tl.sum(weights, 1)", "total = total + tl.sum(weights, 1)", TALL,
    ),
    Bug(
        "a query that has seen nothing yet turns NaN", "NaN", FORWARD,
        'anchor = tl.where(higher == float("-inf"), 0.0, higher) if MASK else higher', "anchor = higher",
        TALL,
    ),
    Bug(
        "heads share keys in turn", "GQA map", FORWARD,
        "kv_head = head // GROUP", "kv_head = head % (tl.num_programs(0) // GROUP)", GROUPED,
    ),
    Bug(
        "a query's gradient has another head's keys", "GQA map", BACKWARD,
        "kv_head = head // GROUP", "kv_head = head % (tl.num_programs(0) // GROUP)", GROUPED,
    ),
    Bug(
        "a key's gradient comes from heads in turn", "GQA map", BACKWARD,
        "head = kv_head * GROUP + step // divisor", "head = kv_head + step // divisor * tl.num_programs(0)",
        GROUPED,
    ),
    Bug(
        "a key's gradient comes from one head of its group", "GQA map", BACKWARD,
        "tl.range(0, blocks * GROUP)", "tl.range(0, blocks)", GROUPED,
    ),
    Bug(
        "exponents of base 2 without log2(e)", "scale", LAUNCH,
        "scale * LOG2_E, *_strides(query", "scale, *_strides(query", TALL,
    ),
    Bug(
        "a key's gradient in base 2", "scale", BACKWARD, "dk * scale, row", "dk * scale_base2, row", TALL
    ),
    Bug(
        "a key's gradient without delta", "wrong gradient", BACKWARD,
        'tl.dot(v, tl.trans(do), input_precision="ieee") - sums[None, :]',
        'tl.dot(v, tl.trans(do), input_precision="ieee")', TALL,
    ),
    Bug(
        "a query's gradient without delta", "wrong gradient", BACKWARD,
        'tl.dot(do, tl.trans(v), input_precision="ieee") - sums[:, None]',
        'tl.dot(do, tl.trans(v), input_precision="ieee")', TALL,
    ),
)  # fmt: skip

MEMORY = (
    Bug(
        "offsets of rows in 32 bits", "int32 overflow", FORWARD,
        "place = source + head.to(tl.int64) * head_stride + offset.to(tl.int64)[:, None] * row_stride",
        "place = source + head * head_stride + offset[:, None] * row_stride", FAR,
    ),
    Bug(
        "value is read by key's strides", "stride", LAUNCH,
        "*_strides(query, key, value, out)", "*_strides(query, key, key, out)", FAR,
    ),
    Bug(
        "the backward reads value by key's strides", "stride", BACKWARD,
        "value, first, kv_head, kv_tokens, value_row_stride, value_head_stride, DIM",
        "value, first, kv_head, kv_tokens, key_row_stride, key_head_stride, DIM", VIEWS,
    ),
    Bug(
        "the upstream gradient is read by the query's strides", "stride", BACKWARD,
        "out_gradient, begin, head, tokens, gradient_row_stride, gradient_head_stride, DIM",
        "out_gradient, begin, head, tokens, query_row_stride, query_head_stride, DIM", VIEWS,
    ),
    Bug(
        "rows beyond the last token are loaded", "out of bounds", FORWARD,
        "offset = tl.minimum(offset, rows - 1)", "offset = tl.minimum(offset, rows)", POINTERS,
    ),
    Bug(
        "the last token is not written", "unwritten tail", FORWARD,
        "inside = (offset < rows)[:, None]", "inside = (offset < rows - 1)[:, None]", POINTERS,
    ),
    Bug(
        "the last block of queries is not launched", "unwritten tail", LAUNCH,
        "forward_kernel[(heads, triton.cdiv(tokens, tile.block_q))]",
        "forward_kernel[(heads, max(1, tokens // tile.block_q))]", TALL,
    ),
    Bug(
        "the last block of keys has no gradient written", "unwritten tail", LAUNCH,
        "key_value_kernel[(kv_heads, triton.cdiv(kv_tokens, key_value_tile.block_kv))]",
        "key_value_kernel[(kv_heads, max(1, kv_tokens // key_value_tile.block_kv))]", TALL,
    ),
    Bug(
        "the last head's logsumexp runs beyond its end", "out of bounds", FORWARD,
        "peak + tl.log2(total), mask=offset < tokens)", "peak + tl.log2(total))", TALL,
    ),
    Bug(
        "columns beyond the dim are written", "out of bounds", FORWARD,
        "inside = (offset < rows)[:, None] & (column < DIM)[None, :]",
        "inside = (offset < rows)[:, None] & (column < WIDTH)[None, :]", DIM_96,
    ),
    Bug(
        "two programs write one block of keys", "race", BACKWARD,
        "row = tl.program_id(1) * BLOCK_KV", "row = tl.program_id(1) // 2 * BLOCK_KV", TALL,
    ),
)  # fmt: skip

ATTENTION_BUGS = (*MASKS, *SKIPS, *ARITHMETIC, *MEMORY)
