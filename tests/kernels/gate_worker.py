"""The gate over planted configurations: python gate_worker.py PLANT [the gate's own arguments].

PLANT names the one expectation that the configurations breach, or a sound one. Run with no
TRITON_INTERPRET in the environment.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import triton
import triton.language as tl

sys.path.insert(0, str(Path(__file__).parents[2] / "kernels" / "bench"))

from compilation import Compilation
from resources import main


@triton.jit
def gemm(
    a, b, c, k, stride: tl.int64,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr,
    UPCAST: tl.constexpr = False, ATOMIC: tl.constexpr = False, PRECISION: tl.constexpr = "ieee",
):  # fmt: skip
    """One tile of c = a @ b, all of row stride `stride`."""
    rows = tl.program_id(0) * TILE_M + tl.arange(0, TILE_M)
    columns = tl.program_id(1) * TILE_N + tl.arange(0, TILE_N)
    inner = tl.arange(0, TILE_K)
    total = tl.zeros((TILE_M, TILE_N), tl.float32)
    for start in tl.range(0, k, TILE_K):
        left = tl.load(a + rows[:, None] * stride + (start + inner)[None, :])
        right = tl.load(b + (start + inner)[:, None] * stride + columns[None, :])
        if UPCAST:
            left, right = left.to(tl.float32), right.to(tl.float32)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    to = c + rows[:, None] * stride + columns[None, :]
    if ATOMIC:
        tl.atomic_add(to, total)
    else:
        tl.store(to, total.to(c.dtype.element_ty))


@triton.jit
def store(c, value):
    tl.store(c, value)


@triton.jit
def undefined(c):
    tl.store(c, nowhere)  # noqa: F821


class Crash(dict[str, object]):
    """Constants that end the process which compiles them, as LLVM's own aborts do."""

    def get(self, *_: object) -> object:
        print("LLVM ERROR: planted", file=sys.stderr, flush=True)
        os.abort()


def sound(
    target: str, dtype: str = "bf16", tile: tuple[int, int, int] = (64, 64, 32), **constants: object
) -> Any:
    """A GEMM that breaches nothing; a tile of 64 x 64 keeps its compilation under 1 s."""
    c = "*fp32" if constants.get("ATOMIC") else f"*{dtype}"
    return Compilation(
        kernel=gemm,
        target=target,
        label="gemm",
        types={"a": f"*{dtype}", "b": f"*{dtype}", "c": c, "k": "i32", "stride": "i64"},
        constants=dict(zip(("TILE_M", "TILE_N", "TILE_K"), tile, strict=True)) | constants,
        num_warps=4,
        num_stages=2,
        min_occupancy=2 if target.startswith("gfx") else 8,
        matrix=dtype != "fp32",
        divisible=("k", "stride"),
        flop=2 * 64 * 64 * 32,
        bytes=2 * (64 + 64) * 32,
    )


def planted(plant: str, target: str) -> list[Compilation]:
    good = sound(target)
    few_registers = {"waves_per_eu": 8} if target.startswith("gfx") else {"maxnreg": 104}
    records: Mapping[str, Compilation] = {
        "sound": good,
        "sound fp32": sound(target, "fp32"),
        "spilling": replace(sound(target, tile=(128, 128, 32)), options=few_registers),
        "oversized": replace(sound(target, tile=(64, 64, 128)), num_stages=9),
        "upcast": sound(target, UPCAST=True),
        "atomic": sound(target, ATOMIC=True),
        "allowed atomic": replace(sound(target, ATOMIC=True), deterministic=False),
        "tf32": sound(target, "fp32", PRECISION="tf32"),
        "emulated fp32": sound(target, "fp32", PRECISION="bf16x3"),
        "narrow": replace(good, divisible=()),  # rows of any stride: no load can take 16 bytes
        "inner": sound(target, tile=(64, 64, 24)),
        "crowded": replace(good, min_occupancy=65),
        "small": sound(target, tile=(16, 64, 32)),
        "refused": replace(sound(target, tile=(128, 256, 32)), options={"maxnreg": 104}),
        "no dot": replace(
            good, kernel=store, types={"c": "*fp32", "value": "fp32"}, constants={}, divisible=()
        ),
        "undefined": replace(good, kernel=undefined, types={"c": "*fp32"}, constants={}, divisible=()),
        "unknown target": replace(good, target="sm_42"),
        "unknown option": replace(good, options={"matrix_instr_nonkdin": 16}),
        "unknown argument": replace(good, divisible=("m",)),
        "no type": replace(good, types={"a": "*bf16"}, divisible=()),
        "crash": replace(good, constants=Crash(good.constants)),
    }
    return [records[plant], replace(good, label="beside")] if plant == "crash" else [records[plant]]


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:], lambda target: planted(sys.argv[1], target)))
