"""Every committed configuration of every kernel: what the gate compiles."""

from collections.abc import Mapping

from compilation import Compilation
from tpt_kernels.flash.tiles import Tile

DTYPES = {2: ("bf16", "fp16"), 4: ("fp32",)}  # bytes of an element -> triton's names
GROUP = 4  # query heads a key head, as in an 8B model; a constant that changes no register count


def configurations(target: str) -> list[Compilation]:
    """The configurations committed for a target, one a kernel, head dim and dtype."""
    from tpt_kernels.flash.tiles import tiles_of

    found = [
        attention(target, name, dim, dtype, tile)
        for (name, dim, size), tile in tiles_of(target).items()
        for dtype in DTYPES[size]
    ]
    found += [delta(target, dim, dtype) for dim in (64, 96, 128, 256) for dtype in ("bf16", "fp16", "fp32")]
    return found + [rows(target, name, dtype) for name in ROWS for dtype in ("bf16", "fp16", "fp32")]


def attention(target: str, name: str, dim: int, dtype: str, tile: Tile) -> Compilation:
    """One pass of attention with a tile, committed or a candidate."""
    from tpt_kernels.flash.backward import key_value_kernel, query_kernel
    from tpt_kernels.flash.forward import forward_kernel
    from tpt_kernels.flash.launch import options
    from tpt_kernels.flash.tiles import padded_dim

    kernel = {"forward": forward_kernel, "key_value": key_value_kernel, "query": query_kernel}[name]
    blocks = {
        **dict.fromkeys(("query", "out", "out_gradient", "query_gradient"), tile.block_q),
        **dict.fromkeys(("key", "value", "key_gradient", "value_gradient"), tile.block_kv),
    }
    types: dict[str, str] = {}
    for argument in kernel.arg_names:
        if argument in blocks:
            shape = f"[{blocks[argument]}, {dim}]"
            types[argument] = f"tensordesc<{dtype}{shape}>" if tile.descriptors else f"*{dtype}"
        elif argument in ("logsumexp", "delta"):
            types[argument] = "*fp32"
        elif argument.endswith(("_begin", "_end")):
            types[argument] = "*i32"
        elif argument.endswith("_stride") or argument in ("tokens", "kv_tokens"):
            types[argument] = "i32"
        elif argument.startswith("scale"):
            types[argument] = "fp32"
    chosen = dict(options(tile))
    products = {"forward": 2, "key_value": 4, "query": 3}[name]
    loaded = tile.block_q if name == "key_value" else tile.block_kv
    return Compilation(
        kernel=kernel,
        target=target,
        label=f"attention {name}, dim {dim}, {dtype}",
        types=types,
        constants={
            "GROUP": GROUP, "DIM": dim, "WIDTH": padded_dim(dim), "BLOCK_Q": tile.block_q,
            "BLOCK_KV": tile.block_kv, "DESCRIPTORS": tile.descriptors,
        },
        divisible=tuple(argument for argument in types if argument.endswith("_stride")),
        num_warps=chosen.pop("num_warps"),
        num_stages=chosen.pop("num_stages"),
        options=chosen,
        min_occupancy=tile.occupancy,
        matrix=dtype != "fp32",
        flop=2 * products * tile.block_q * tile.block_kv * dim,
        bytes=2 * loaded * dim * (4 if dtype == "fp32" else 2),
    )  # fmt: skip


def delta(target: str, dim: int, dtype: str) -> Compilation:
    """The row sums before the backward."""
    from tpt_kernels.flash.backward import delta_kernel
    from tpt_kernels.flash.launch import DELTA_BLOCK
    from tpt_kernels.flash.tiles import padded_dim

    strides = [f"{of}_stride" for of in ("row", "head", "gradient_row", "gradient_head")]
    return Compilation(
        kernel=delta_kernel,
        target=target,
        label=f"attention delta, dim {dim}, {dtype}",
        types={
            "out": f"*{dtype}", "out_gradient": f"*{dtype}", "delta": "*fp32", "tokens": "i32",
            **dict.fromkeys(strides, "i32"),
        },
        constants={"DIM": dim, "WIDTH": padded_dim(dim), "BLOCK_Q": DELTA_BLOCK},
        divisible=tuple(strides),
        num_warps=4,
        num_stages=1,
        min_occupancy=5 if target.startswith("gfx") else 32,
        matrix=False,
        flop=2 * DELTA_BLOCK * dim,
        bytes=2 * DELTA_BLOCK * dim * (4 if dtype == "fp32" else 2),
    )  # fmt: skip


ROWS: Mapping[str, tuple[str, ...]] = {
    "statistics": ("logits", "target", "statistics"),
    "gradient": ("logits", "target", "statistics", "upstream"),
}


def rows(target: str, name: str, dtype: str) -> Compilation:
    """A row kernel of cross-entropy."""
    from tpt_kernels.loss.kernels import gradient_kernel, statistics_kernel
    from tpt_kernels.loss.rows import TILES

    kernel = {"statistics": statistics_kernel, "gradient": gradient_kernel}[name]
    tile = TILES[target]
    pointers = {"logits": f"*{dtype}", "target": "*i64", "statistics": "*fp32", "upstream": "*fp32"}
    integers = ("row_stride", "tokens", "columns", "valid", "first", "ignore_index")
    types = {argument: pointers[argument] for argument in ROWS[name]}
    types |= {argument: "i32" for argument in kernel.arg_names if argument in integers}
    types |= {argument: "fp32" for argument in kernel.arg_names if argument == "z_loss"}
    size = 4 if dtype == "fp32" else 2
    return Compilation(
        kernel=kernel,
        target=target,
        label=f"cross-entropy {name}, {dtype}",
        types=types,
        constants={"BLOCK": tile.block},
        divisible=tuple(argument for argument in ("row_stride", "columns") if argument in types),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        min_occupancy=tile.occupancy,
        matrix=False,
        flop=5 * tile.block,
        bytes=tile.block * size * (2 if name == "gradient" else 1),
        tiles="loss/rows.py",
    )
