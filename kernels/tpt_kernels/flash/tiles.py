"""Block sizes per target, pass, head dim and size of an element, found by compiling alone.

kernels/bench/resources.py compiles every row and fails on a spill, on memory above the chip's limit, and on
an occupancy under the row's own floor. What is fastest among the rows that pass is not measured yet: where
two passed, the larger block stands here, and on gfx9 the one with two waves a SIMD.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from tpt_kernels.target import HOST, target_of


@dataclass(frozen=True)
class Tile:
    """One kernel's launch: queries and keys of a program, and how it is compiled."""

    block_q: int
    block_kv: int
    num_warps: int
    num_stages: int
    occupancy: int = 1  # the gate's floor: warps a SM, or waves a SIMD of gfx9
    descriptors: bool = False  # TMA (sm_90 and newer), for dims that are a power of two
    matrix_instruction: int = 0  # gfx9: rows of one MFMA; 0: the compiler's choice


PASSES = FORWARD, KEY_VALUE, QUERY = ("forward", "key_value", "query")
HEAD_DIMS = (64, 96, 128, 256)
HOST_TILE = Tile(32, 32, num_warps=1, num_stages=1)


def padded_dim(dim: int) -> int:
    """The head dim as tiles hold it: a power of two, at least the 16 of a matrix instruction."""
    return max(16, 1 << (dim - 1).bit_length())


def tile_of(name: str, query: Tensor) -> Tile:
    """The tile of a pass for this tensor's device, dtype and head dim.

    Another dim takes the next one's tile: right, but only HEAD_DIMS are held to the gate.
    """
    target = target_of(query.device)
    if target == HOST:
        return HOST_TILE
    dim = query.shape[2]
    tile = tiles_of(target)[name, next(d for d in HEAD_DIMS if d >= dim), query.element_size()]
    return tile if dim == padded_dim(dim) else replace(tile, descriptors=False)


def tiles_of(target: str) -> dict[tuple[str, int, int], Tile]:
    """Pass, head dim and bytes of an element -> tile; bf16 and fp16 share theirs."""
    wide = AMD_FP32 if target.startswith("gfx") else NVIDIA_FP32
    by_size = {2: BFLOAT16[target], 4: wide}
    return {(name, dim, size): tile for size, tiles in by_size.items() for (name, dim), tile in tiles.items()}


BFLOAT16: dict[str, dict[tuple[str, int], Tile]] = {
    "sm_80": {
        (FORWARD, 64): Tile(128, 64, 4, 3, occupancy=8),
        (FORWARD, 96): Tile(128, 64, 8, 3, occupancy=8),
        (FORWARD, 128): Tile(128, 64, 8, 3, occupancy=8),
        (FORWARD, 256): Tile(64, 64, 8, 1, occupancy=8),
        (KEY_VALUE, 64): Tile(64, 128, 8, 2, occupancy=8),
        (KEY_VALUE, 96): Tile(32, 128, 8, 2, occupancy=8),
        (KEY_VALUE, 128): Tile(32, 128, 8, 2, occupancy=8),
        (KEY_VALUE, 256): Tile(32, 32, 8, 1, occupancy=8),
        (QUERY, 64): Tile(128, 64, 8, 3, occupancy=8),
        (QUERY, 96): Tile(128, 64, 8, 2, occupancy=8),
        (QUERY, 128): Tile(128, 64, 8, 2, occupancy=8),
        (QUERY, 256): Tile(64, 32, 8, 2, occupancy=8),
    },
    "sm_90": {
        (FORWARD, 64): Tile(128, 128, 8, 3, occupancy=8, descriptors=True),
        (FORWARD, 96): Tile(128, 128, 8, 2, occupancy=8),
        (FORWARD, 128): Tile(128, 128, 8, 2, occupancy=8, descriptors=True),
        (FORWARD, 256): Tile(128, 64, 8, 2, occupancy=8, descriptors=True),
        (KEY_VALUE, 64): Tile(64, 128, 8, 3, occupancy=8, descriptors=True),
        (KEY_VALUE, 96): Tile(64, 128, 8, 2, occupancy=8),
        (KEY_VALUE, 128): Tile(64, 128, 8, 2, occupancy=8, descriptors=True),
        (KEY_VALUE, 256): Tile(32, 64, 8, 2, occupancy=8, descriptors=True),
        (QUERY, 64): Tile(128, 128, 8, 2, occupancy=8, descriptors=True),
        (QUERY, 96): Tile(128, 64, 8, 2, occupancy=8),
        (QUERY, 128): Tile(128, 64, 8, 2, occupancy=8, descriptors=True),
        (QUERY, 256): Tile(64, 64, 8, 1, occupancy=8, descriptors=True),
    },
    "sm_100": {
        (FORWARD, 64): Tile(128, 128, 8, 3, occupancy=8, descriptors=True),
        (FORWARD, 96): Tile(128, 128, 8, 2, occupancy=8),
        (FORWARD, 128): Tile(128, 128, 8, 2, occupancy=8, descriptors=True),
        (FORWARD, 256): Tile(128, 64, 8, 2, occupancy=8, descriptors=True),
        (KEY_VALUE, 64): Tile(64, 128, 8, 3, occupancy=8, descriptors=True),
        (KEY_VALUE, 96): Tile(64, 128, 8, 2, occupancy=8),
        (KEY_VALUE, 128): Tile(64, 128, 8, 2, occupancy=8, descriptors=True),
        (KEY_VALUE, 256): Tile(64, 64, 8, 1, occupancy=8, descriptors=True),
        (QUERY, 64): Tile(128, 128, 8, 2, occupancy=8, descriptors=True),
        (QUERY, 96): Tile(128, 64, 8, 2, occupancy=8),
        (QUERY, 128): Tile(128, 64, 8, 2, occupancy=8, descriptors=True),
        (QUERY, 256): Tile(64, 64, 8, 1, occupancy=8, descriptors=True),
    },
    "gfx942": {
        (FORWARD, 64): Tile(128, 64, 8, 1, occupancy=2, matrix_instruction=16),
        (FORWARD, 96): Tile(128, 64, 8, 2, occupancy=2, matrix_instruction=16),
        (FORWARD, 128): Tile(128, 64, 8, 2, occupancy=2, matrix_instruction=16),
        (FORWARD, 256): Tile(128, 32, 8, 1, occupancy=2, matrix_instruction=16),
        (KEY_VALUE, 64): Tile(64, 128, 8, 1, occupancy=2, matrix_instruction=16),
        (KEY_VALUE, 96): Tile(32, 64, 4, 1, occupancy=2, matrix_instruction=16),
        (KEY_VALUE, 128): Tile(32, 64, 4, 1, occupancy=2, matrix_instruction=16),
        (KEY_VALUE, 256): Tile(32, 64, 8, 1, occupancy=2, matrix_instruction=16),
        (QUERY, 64): Tile(128, 64, 8, 1, occupancy=4, matrix_instruction=16),
        (QUERY, 96): Tile(128, 32, 8, 1, occupancy=4, matrix_instruction=16),
        (QUERY, 128): Tile(128, 32, 8, 1, occupancy=4, matrix_instruction=16),
        (QUERY, 256): Tile(64, 32, 8, 1, occupancy=2, matrix_instruction=16),
    },
    "gfx950": {
        (FORWARD, 64): Tile(128, 64, 8, 1, occupancy=4, matrix_instruction=16),
        (FORWARD, 96): Tile(128, 64, 8, 2, occupancy=2, matrix_instruction=16),
        (FORWARD, 128): Tile(128, 64, 8, 2, occupancy=2, matrix_instruction=16),
        (FORWARD, 256): Tile(128, 32, 8, 1, occupancy=2, matrix_instruction=16),
        (KEY_VALUE, 64): Tile(64, 128, 8, 1, occupancy=2, matrix_instruction=16),
        (KEY_VALUE, 96): Tile(32, 128, 8, 1, occupancy=2, matrix_instruction=16),
        (KEY_VALUE, 128): Tile(32, 128, 8, 1, occupancy=2, matrix_instruction=16),
        (KEY_VALUE, 256): Tile(32, 64, 8, 1, occupancy=2, matrix_instruction=16),
        (QUERY, 64): Tile(128, 64, 8, 1, occupancy=4, matrix_instruction=16),
        (QUERY, 96): Tile(128, 32, 8, 1, occupancy=4, matrix_instruction=16),
        (QUERY, 128): Tile(128, 32, 8, 1, occupancy=2, matrix_instruction=16),
        (QUERY, 256): Tile(64, 32, 8, 1, occupancy=2, matrix_instruction=16),
    },
}
NVIDIA_FP32: dict[tuple[str, int], Tile] = {
    (FORWARD, 64): Tile(64, 32, 8, 1, occupancy=8),
    (FORWARD, 96): Tile(32, 32, 8, 1, occupancy=8),
    (FORWARD, 128): Tile(32, 32, 8, 1, occupancy=8),
    (FORWARD, 256): Tile(16, 32, 8, 1, occupancy=8),
    (KEY_VALUE, 64): Tile(32, 32, 8, 1, occupancy=24),
    (KEY_VALUE, 96): Tile(32, 32, 8, 1, occupancy=16),
    (KEY_VALUE, 128): Tile(32, 32, 8, 1, occupancy=16),
    (KEY_VALUE, 256): Tile(32, 32, 8, 1, occupancy=8),
    (QUERY, 64): Tile(32, 64, 8, 1, occupancy=24),
    (QUERY, 96): Tile(32, 64, 8, 1, occupancy=8),
    (QUERY, 128): Tile(32, 64, 8, 1, occupancy=8),
    (QUERY, 256): Tile(32, 32, 8, 1, occupancy=8),
}
AMD_FP32: dict[tuple[str, int], Tile] = {
    (FORWARD, 64): Tile(64, 32, 4, 1, occupancy=3, matrix_instruction=16),
    (FORWARD, 96): Tile(32, 32, 4, 1, occupancy=2, matrix_instruction=16),
    (FORWARD, 128): Tile(32, 32, 4, 1, occupancy=2, matrix_instruction=16),
    (FORWARD, 256): Tile(16, 16, 4, 1, occupancy=2, matrix_instruction=16),
    (KEY_VALUE, 64): Tile(32, 64, 4, 1, occupancy=2, matrix_instruction=16),
    (KEY_VALUE, 96): Tile(32, 32, 4, 1, occupancy=2, matrix_instruction=16),
    (KEY_VALUE, 128): Tile(32, 32, 4, 1, occupancy=2, matrix_instruction=16),
    (KEY_VALUE, 256): Tile(16, 16, 4, 1, occupancy=1, matrix_instruction=16),
    (QUERY, 64): Tile(32, 64, 4, 1, occupancy=2, matrix_instruction=16),
    (QUERY, 96): Tile(32, 32, 4, 1, occupancy=2, matrix_instruction=16),
    (QUERY, 128): Tile(32, 32, 4, 1, occupancy=2, matrix_instruction=16),
    (QUERY, 256): Tile(16, 16, 4, 1, occupancy=1, matrix_instruction=16),
}
