"""The two row functions of cross-entropy, launched on Triton, and the choice between Triton and torch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tpt_kernels import reference
from tpt_kernels.loss.kernels import gradient_kernel, statistics_kernel
from tpt_kernels.loss.statistics import Columns
from tpt_kernels.target import HOST, device_of, has_tiles, target_of


@dataclass(frozen=True)
class Rows:
    """reference.row_statistics and reference.logits_gradient_, or functions with their signatures."""

    statistics: Callable[..., Tensor]
    gradient_: Callable[..., None]


@dataclass(frozen=True)
class RowTile:
    """Columns a program takes at once, and its warps."""

    block: int
    num_warps: int
    num_stages: int
    occupancy: int = 1  # the gate's floor: warps a SM, or waves a SIMD of gfx9


LOSS_IMPLS = ("auto", "reference", "triton")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# 4,096 columns over 8 warps: 16 a thread, two 16-byte loads of bf16 in flight. gfx9 has 64 lanes a warp.
TILES = {
    **dict.fromkeys(("sm_80", "sm_90", "sm_100"), RowTile(4096, 8, 2, occupancy=16)),
    **dict.fromkeys(("gfx942", "gfx950"), RowTile(4096, 8, 2, occupancy=6)),
    HOST: RowTile(256, 1, 1),
}


def rows_of(impl: str, sample: Tensor) -> Rows:
    """For rows on the device, of the dtype and with the strides of `sample`. ValueError for an unknown
    impl."""
    if impl == "auto":
        impl = "triton" if has_tiles(sample.device) and _takes(sample) else "reference"
    if impl == "triton":
        return Rows(row_statistics, logits_gradient_)
    if impl == "reference":
        return Rows(reference.row_statistics, reference.logits_gradient_)
    raise ValueError(f"impl: got {impl!r}, expected one of {', '.join(LOSS_IMPLS)}")


def _takes(logits: Tensor) -> bool:
    """Whether the kernels can: known dtype, columns side by side, rows that do not overlap."""
    apart = logits.shape[0] < 2 or logits.stride(0) >= logits.shape[1]
    return logits.dtype in DTYPES and logits.stride(1) == 1 and apart


def row_statistics(logits: Tensor, target: Tensor, columns: Columns) -> Tensor:
    """As reference.row_statistics."""
    tokens = logits.shape[0]
    statistics = torch.empty(3, tokens, dtype=torch.float32, device=logits.device)
    if not tokens:
        return statistics
    tile = _tile(logits)
    with device_of(logits):
        statistics_kernel[(tokens,)](
            _rows(logits), target.contiguous(), statistics, logits.stride(0), tokens,
            columns.valid, columns.first, BLOCK=tile.block, **_options(tile),
        )  # fmt: skip
    return statistics


def logits_gradient_(
    logits: Tensor, statistics: Tensor, target: Tensor, upstream: Tensor,
    columns: Columns, z_loss: float,
) -> None:  # fmt: skip
    """As reference.logits_gradient_."""
    tokens, held = logits.shape
    if not tokens:
        return
    tile = _tile(logits)
    with device_of(logits):
        gradient_kernel[(tokens,)](
            _rows(logits), target.contiguous(), statistics.contiguous(), upstream.float().contiguous(),
            logits.stride(0), tokens, held, columns.valid, columns.first, z_loss,
            BLOCK=tile.block, **_options(tile),
        )  # fmt: skip


def _tile(logits: Tensor) -> RowTile:
    return TILES[target_of(logits.device)]


def _options(tile: RowTile) -> dict[str, int]:
    return {"num_warps": tile.num_warps, "num_stages": tile.num_stages}


def _rows(logits: Tensor) -> Tensor:
    if not _takes(logits):
        raise ValueError(
            f"logits: got {logits.dtype} with strides {logits.stride()}, expected bfloat16, float16 or "
            "float32 with columns side by side and rows apart; use .contiguous()"
        )
    return logits
