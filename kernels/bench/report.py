"""A compilation's report: its facts, and each expectation that they breach, in a line that names the fix."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from subprocess import CalledProcessError

from compilation import Compilation, RecordError, compile_kernel
from facts import Facts, read
from limits import LIMITS, MAX_TENSOR_MEMORY_COLUMNS

TRUE_FP32 = ("f32", "f64")
HALF = ("bf16", "f16")  # tcgen05 calls both f16


@dataclass(frozen=True)
class Report:
    """label, target, min_occupancy, flop, bytes: the compilation's. facts: None where nothing was compiled.
    breaches: none where the gate passes. compile_s: seconds, next to none where triton had it cached."""

    label: str
    target: str
    min_occupancy: int
    flop: int
    bytes: int
    facts: Facts | None
    breaches: tuple[str, ...]
    compile_s: float


def report(compilation: Compilation) -> Report:
    """Compile and judge, in this process. The compiler's errors are breaches; its crashes end the process:
    `processes.reports` stands above those."""
    from triton.errors import TritonError

    start = time.monotonic()
    try:
        facts = read(compile_kernel(compilation), compilation.target)
    # Triton's passes end in a RuntimeError, its checks of options in a ValueError or an AssertionError.
    except (RecordError, TritonError, RuntimeError, ValueError, AssertionError, CalledProcessError) as error:
        return failed(compilation, f"not compiled: {_reason(error)}")
    breaches = tuple(f"{compilation}: {problem}" for problem in problems(compilation, facts))
    return _report(compilation, facts, breaches, time.monotonic() - start)


def failed(compilation: Compilation, problem: str) -> Report:
    """The report where there is nothing to read."""
    return _report(compilation, None, (f"{compilation}: {problem}",), 0.0)


def said(output: str) -> str | None:
    """The error that a compiler prints amid its own output: ptxas, LLVM or one of MLIR's passes."""
    found = re.search(r"(?:[Ee]rror|ERROR|fatal) *: *(.+)", output)
    return found[1].strip() if found else None


def _reason(error: Exception) -> str:
    """One line of an error: triton's quote the source above it, and below ptxas's the command.

    An error inside of a called function is the cause of one at its call.
    """
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    text = (error.stderr if isinstance(error, CalledProcessError) else str(error)) or ""
    name = type(error).__name__
    if isinstance(error, CalledProcessError) or name == "PTXASError":
        return f"{name}: {said(text.partition('stderr:')[2] or text) or error}"
    lines = text.strip().splitlines()
    return f"{name}: {lines[-1].strip()}" if lines else name


def problems(compilation: Compilation, facts: Facts) -> Iterator[str]:
    """What the facts breach: what was got, what was expected, and the fix."""
    limits, tiles = LIMITS[compilation.target], compilation.tiles
    if facts.spills:
        spills = ", ".join(f"{count} {kind}" for kind, count in facts.spills.items())
        yield f"{spills}, expected none; choose a smaller block in {tiles}"
    if facts.shared_bytes > limits.shared_bytes:
        yield (
            f"{facts.shared_bytes:,} bytes of shared memory, expected at most {limits.shared_bytes:,}; "
            f"choose a smaller block or fewer stages in {tiles}"
        )
    elif facts.tensor_memory_columns > MAX_TENSOR_MEMORY_COLUMNS:
        yield (
            f"{facts.tensor_memory_columns} columns of tensor memory, expected at most "
            f"{MAX_TENSOR_MEMORY_COLUMNS}; choose a smaller block in {tiles}"
        )
    elif facts.occupancy < compilation.min_occupancy:
        yield (
            f"an occupancy of {facts.occupancy:g} {limits.unit} ({facts.registers} registers, "
            f"{facts.shared_bytes:,} bytes of shared memory), expected at least {compilation.min_occupancy}; "
            f"choose a smaller block in {tiles}"
        )
    if facts.loads and not facts.wide_loads:
        yield (
            f"none of {facts.loads} loads takes 16 bytes, expected some; keep masks and strides out of the "
            "hot loop's way, or multiples of 16"
        )
    yield from _matrix_problems(compilation, facts) if compilation.matrix else _fp32_problems(facts)
    if compilation.deterministic and facts.atomics:
        yield (
            f"{sum(facts.atomics.values())} atomics ({', '.join(sorted(facts.atomics))}) in a deterministic "
            "kernel, expected none; give each output one program that sums it in order"
        )


def _matrix_problems(compilation: Compilation, facts: Facts) -> Iterator[str]:
    family = LIMITS[compilation.target].matrix
    right = [kind for kind in facts.matrix if kind.split()[0] == family and kind.split()[-1] in HALF]
    wrong = sorted(set(facts.matrix) - set(right))
    fix = "give tl.dot bf16 or fp16 operands and a block that the instruction takes"
    if wrong:
        yield f"{', '.join(wrong)}, expected {family} in bf16 or fp16 only; {fix}"
    if facts.fma_dots:
        yield f"dots without a matrix instruction: {facts.fma_dots}, expected {family} in bf16 or fp16; {fix}"
    if not (facts.matrix or facts.fma_dots):
        yield f"no dot, expected {family} in bf16 or fp16; say matrix=False if the kernel is to have none"
    if facts.wgmma_serialised:
        yield (
            "ptxas waits for each wgmma before the next, expected none to wait; choose a block whose "
            f"accumulators fit the registers in {compilation.tiles}"
        )


def _fp32_problems(facts: Facts) -> Iterator[str]:
    reduced = sorted(kind for kind in facts.matrix if kind.split()[-1] not in TRUE_FP32)
    if reduced:
        yield f"{', '.join(reduced)}, expected true fp32; pass input_precision='ieee' to tl.dot"


def _report(
    compilation: Compilation, facts: Facts | None, breaches: tuple[str, ...], compile_s: float
) -> Report:
    return Report(
        label=compilation.label,
        target=compilation.target,
        min_occupancy=compilation.min_occupancy,
        flop=compilation.flop,
        bytes=compilation.bytes,
        facts=facts,
        breaches=breaches,
        compile_s=compile_s,
    )
