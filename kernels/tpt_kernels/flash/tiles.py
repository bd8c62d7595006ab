"""Block sizes per target, pass, head dim and dtype: found by compiling alone, checked by
kernels/bench/resources.py.

Every row compiles without a spill; where the gate's table says otherwise, change it here.
"""

from dataclasses import dataclass

from torch import Tensor

from tpt_kernels.target import HOST, target_of


@dataclass(frozen=True)
class Tile:
    """One kernel's launch: queries and keys of a program, and how it is compiled."""

    block_q: int
    block_kv: int
    num_warps: int
    num_stages: int
    occupancy: int = (
        1  # floor that kernels/bench/resources.py holds it to: warps a SM, or waves a SIMD of gfx9
    )
    descriptors: bool = False  # TMA (sm_90 and newer)
    matrix_instruction: int = 0  # gfx9: rows of one MFMA; 0: the compiler's choice
    waves_per_eu: int = 0  # gfx9: occupancy the compiler shall reach; 0: its choice


FORWARD, KEY_VALUE, QUERY = "forward", "key_value", "query"
PASSES = (FORWARD, KEY_VALUE, QUERY)
HEAD_DIMS = (64, 96, 128, 256)

HOST_TILE = Tile(32, 32, num_warps=1, num_stages=1)


def padded_dim(dim: int) -> int:
    """The head dim as tiles hold it: a power of two, at least the 16 of a matrix instruction."""
    return max(16, 1 << (dim - 1).bit_length())


def tile_of(name: str, query: Tensor) -> Tile:
    """The committed tile of a pass for this tensor's device, dtype and head dim (the next one that has a
    tile)."""
    target = target_of(query.device)
    if target == HOST:
        return HOST_TILE
    bucket = next(dim for dim in HEAD_DIMS if dim >= query.shape[2])
    return tiles_of(target)[name, bucket, query.element_size()]


def tiles_of(target: str) -> dict[tuple[str, int, int], Tile]:
    return TILES[target]


TILES: dict[str, dict[tuple[str, int, int], Tile]] = {}
