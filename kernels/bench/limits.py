"""What a chip has: shared memory, registers and warps of a multiprocessor, and how many blocks fit there.

NVIDIA's figures: CUDA C programming guide, "Technical Specifications per Compute Capability", and the CUDA
occupancy calculator's rounding. AMD's: the CDNA3 and CDNA4 instruction set guides, and LLVM's
AMDGPUBaseInfo (getMaxWorkGroupsPerCU, getOccupancyWithNumSGPRs).
"""

from dataclasses import dataclass
from typing import Any

MAX_TENSOR_MEMORY_COLUMNS = 512


@dataclass(frozen=True)
class Limits:
    """A target's limits; a "multiprocessor" is NVIDIA's SM or AMD's CU, a warp is AMD's wave."""

    architecture: int | str  # as triton's GPUTarget names it
    shared_bytes: int  # the most a block may have
    matrix: str  # the matrix instruction that bf16 and fp16 dots must become

    @property
    def backend(self) -> str:
        return "hip" if isinstance(self.architecture, str) else "cuda"

    @property
    def warp_size(self) -> int:
        return 64 if self.backend == "hip" else 32

    @property
    def unit(self) -> str:
        """What an occupancy is counted in."""
        return "waves a SIMD" if self.backend == "hip" else "warps a SM"


LIMITS = {
    "sm_80": Limits(80, 163 * 1024, "mma.sync"),
    "sm_90": Limits(90, 227 * 1024, "wgmma"),
    "sm_100": Limits(100, 227 * 1024, "tcgen05"),
    "gfx942": Limits("gfx942", 64 * 1024, "mfma"),
    "gfx950": Limits("gfx950", 160 * 1024, "mfma"),
}


def gpu_target(target: str) -> Any:
    """Triton's own record of a target of LIMITS."""
    from triton.backends.compiler import GPUTarget

    limits = LIMITS[target]
    return GPUTarget(limits.backend, limits.architecture, limits.warp_size)


def cuda_blocks(
    target: str, *, registers: int, warps: int, shared_bytes: int, tensor_memory_columns: int
) -> int:
    """Blocks resident on a SM at a time: 65,536 registers in 4 parts, 64 warps, 32 blocks, shared memory."""
    warp_registers = -(-max(registers, 1) * 32 // 256) * 256  # handed out by 256
    by_registers = 65536 // warp_registers // 4 * 4 // warps
    shared_of_block = -(-shared_bytes // 128) * 128 + 1024  # the driver keeps 1 KiB of each block
    by_shared = (LIMITS[target].shared_bytes + 1024) // shared_of_block
    by_tensor_memory = MAX_TENSOR_MEMORY_COLUMNS // max(tensor_memory_columns, 1)
    return min(by_registers, 64 // warps, 32, by_shared, by_tensor_memory)


def amd_blocks(
    target: str, *, vector_registers: int, scalar_registers: int, warps: int, shared_bytes: int
) -> int:
    """Workgroups resident on a CU at a time: 4 SIMDs of 512 registers a lane (vector and accumulation) each,
    8 waves a SIMD (7 where a wave has over 100 of the 800 scalar registers), 16 workgroups of some waves."""
    waves = min(8 if scalar_registers <= 100 else 7, 512 // (-(-max(vector_registers, 1) // 8) * 8))
    by_registers = waves // (warps // 4) if warps >= 4 else 4 * waves // warps
    granule = 1280 if target == "gfx950" else 512
    by_shared = LIMITS[target].shared_bytes // (-(-max(shared_bytes, 1) // granule) * granule)
    return min(by_registers, by_shared, 32 if warps == 1 else 16)
