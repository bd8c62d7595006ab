"""What a compiled kernel is made of, read from its assembly: registers, spills, memory, instructions."""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from limits import LIMITS, amd_blocks, cuda_blocks

# not bar.red, a barrier
CUDA_ATOMICS = r"(?<![.\w])(?:atom|red|multimem\.red|cp\.reduce\.async\.bulk)\.[.\w:]+"
AMD_ATOMICS = r"\b(?:(?:buffer|global|flat)_atomic|ds_(?:pk_)?(?:add|sub|min|max|and|or|xor|cmpst))_\w+"


@dataclass(frozen=True)
class Facts:
    """registers: of a thread (AMD: vector and accumulation together). spills: what went to memory that had to
    stay in registers, by kind, zero ones left out. shared_bytes: shared memory or LDS of a block. blocks:
    resident on a multiprocessor at a time. occupancy: warps a SM or waves a SIMD. matrix: matrix
    instructions by kind ("wgmma m64n128k16 bf16"). fma_dots: dots that use none. loads, wide_loads: load
    instructions from global memory, and those of 16 bytes a thread or by TMA. atomics: by kind.
    """

    registers: int
    spills: Mapping[str, int]
    shared_bytes: int
    tensor_memory_columns: int
    warps: int
    blocks: int
    occupancy: float
    matrix: Mapping[str, int]
    fma_dots: int
    loads: int
    wide_loads: int
    atomics: Mapping[str, int]
    wgmma_serialised: bool


def read(compiled: Any, target: str) -> Facts:
    """The facts of triton's CompiledKernel for a target of LIMITS."""
    return _amd(compiled, target) if LIMITS[target].backend == "hip" else _cuda(compiled, target)


def _cuda(compiled: Any, target: str) -> Facts:
    ptx: str = compiled.asm["ptx"]
    usage, machine = _disassembled(compiled.asm["cubin"])
    registers = int(_first(r"REG:(\d+)", usage))
    warps, shared_bytes = compiled.metadata.num_warps, compiled.metadata.shared
    columns = compiled.metadata.tmem_size or 0
    blocks = cuda_blocks(
        target,
        registers=registers,
        warps=warps,
        shared_bytes=shared_bytes,
        tensor_memory_columns=columns,
    )
    loads = re.findall(r"\b(?:LDG|LDGSTS|UTMALDG)\b[.\w]*", machine)
    return Facts(
        registers=registers,
        spills=_present(
            {
                "spilled loads": len(re.findall(r"\bLDL\b", machine)),
                "spilled stores": len(re.findall(r"\bSTL\b", machine)),
                # what no instruction is counted for yet: arrays indexed at run time, calls
                "bytes of stack": int(_first(r"STACK:(\d+)", usage)),
                "bytes of local memory": int(_first(r"LOCAL:(\d+)", usage)),
            }
        ),
        shared_bytes=shared_bytes,
        tensor_memory_columns=columns,
        warps=warps,
        blocks=blocks,
        occupancy=blocks * warps,
        matrix=dict(Counter(_cuda_matrix(ptx))),
        fma_dots=_fma_dots(compiled.asm["ttgir"]),
        loads=len(loads),
        wide_loads=sum(load.startswith("UTMALDG") or ".128" in load for load in loads),
        atomics=dict(Counter(re.findall(CUDA_ATOMICS, ptx))),
        wgmma_serialised="wgmma" in ptx and _wgmma_serialised(ptx),
    )


def _disassembled(cubin: bytes) -> tuple[str, str]:
    """cuobjdump's resource usage of a binary, and its machine code."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run([knobs.nvidia.cuobjdump.path, "-res-usage", file.name])
        return usage, _run([knobs.nvidia.nvdisasm.path, "-c", file.name])


def _wgmma_serialised(ptx: str) -> bool:
    """Whether ptxas waits for each wgmma before the next. It says so in its log alone, which triton drops, so
    it runs once more: 1.3 s for attention at dim 128."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(mode="w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        # sm_90a and the allocation level as in triton's own call
        command = [knobs.nvidia.ptxas.path, "--gpu-name=sm_90a", "--regAllocOptLevel=2", file.name]
        return "wgmma.mma_async instructions are serialized" in _run([*command, "-o", "/dev/null"])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _cuda_matrix(ptx: str) -> Iterable[str]:
    for shape, kind in re.findall(r"wgmma\.mma_async\.sync\.aligned\.(m\d+n\d+k\d+)\.\w+\.(\w+)\.", ptx):
        yield f"wgmma {shape} {kind}"
    for shape, types in re.findall(r"\bmma\.sync\.aligned\.(m\d+n\d+k\d+)\.row\.col\.([.\w]+)", ptx):
        yield f"mma.sync {shape} {types.split('.')[1]}"
    for kind in re.findall(r"tcgen05\.mma[.\w:]*kind::(\w+)", ptx):
        yield f"tcgen05 {kind}"


def _amd(compiled: Any, target: str) -> Facts:
    text: str = compiled.asm["amdgcn"]

    def count(name: str) -> int:
        return int(_first(rf"\.{name}:\s+(\d+)", text))

    warps = compiled.metadata.num_warps
    shared_bytes = max(compiled.metadata.shared, count("group_segment_fixed_size"))
    registers = count("vgpr_count")
    blocks = amd_blocks(
        target,
        vector_registers=registers,
        scalar_registers=count("sgpr_count"),
        warps=warps,
        shared_bytes=shared_bytes,
    )
    loads = re.findall(r"\b(?:buffer|global|flat)_load_\w+", text)
    kinds = re.findall(r"\bv_s?mfmac?_\w+?_(\d+x\d+x\d+)(?:_\d+b)?_?([a-z]\w*?)(?:_1k)?\b", text)
    return Facts(
        registers=registers,
        spills=_present(
            {
                "spilled vector registers": count("vgpr_spill_count"),
                "spilled scalar registers": count("sgpr_spill_count"),
                "bytes of scratch": count("private_segment_fixed_size"),
            }
        ),
        shared_bytes=shared_bytes,
        tensor_memory_columns=0,
        warps=warps,
        blocks=blocks,
        occupancy=blocks * warps / 4,
        matrix=dict(Counter(f"mfma {shape} {kind}" for shape, kind in kinds)),
        fma_dots=_fma_dots(compiled.asm["ttgir"]),
        loads=len(loads),
        wide_loads=sum("dwordx4" in load for load in loads),
        atomics=dict(Counter(re.findall(AMD_ATOMICS, text))),
        wgmma_serialised=False,
    )


def _fma_dots(ttgir: str) -> int:
    """Dots whose result lies in a blocked layout: a multiply-add a lane, no matrix instruction."""
    return len(re.findall(r"\btt\.dot\b.*-> tensor<[^>]*#blocked", ttgir))


def _present(counts: Mapping[str, int]) -> Mapping[str, int]:
    return {kind: count for kind, count in counts.items() if count}


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found, f"no {pattern} in the compiler's output"
    return found[1]
