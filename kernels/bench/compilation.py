"""One kernel compiled for one target with no GPU: the record of what to compile, and triton's result."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from limits import LIMITS, gpu_target


class RecordError(ValueError):
    """A record that does not fit its kernel, its target or triton."""


@dataclass(frozen=True)
class Compilation:
    """What to compile, as a launch on a device would specialise it, and what the gate expects of it.

    kernel: a function of triton.jit. target: a name of LIMITS. types: argument to triton type ("*bf16",
    "i32", "fp32", "tensordesc<bf16[64, 128]>"). constants: argument to value of a tl.constexpr; one with a
    default may be left out. divisible: integer arguments that are multiples of 16 (pointers always are).
    min_occupancy: the floor, in warps a SM (NVIDIA) or waves a SIMD (AMD). matrix: dots must become the
    target's bf16 or fp16 matrix instruction; False: no dot, or fp32 in true fp32. deterministic: no atomics.
    small_tensors: tensors of at most 2 GB, which AMD's launches compile on their own (32-bit offsets, buffer
    loads). flop, bytes: of one tile, estimates for the table. tiles: the file to change after a breach.
    """

    kernel: Any
    target: str
    label: str
    types: Mapping[str, str]
    constants: Mapping[str, object]
    num_warps: int
    num_stages: int
    min_occupancy: int
    matrix: bool
    divisible: tuple[str, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    deterministic: bool = True
    small_tensors: bool = True
    flop: int = 0
    bytes: int = 0
    tiles: str = "flash/tiles.py"

    def __str__(self) -> str:
        return f"{self.label} on {self.target}"


def compile_kernel(compilation: Compilation) -> Any:
    """Triton's CompiledKernel. RecordError for a record that fits nothing; triton's own errors pass."""
    import triton

    if compilation.target not in LIMITS:
        raise RecordError(f"target: got {compilation.target!r}, expected one of {', '.join(LIMITS)}")
    target = gpu_target(compilation.target)
    options = _options(compilation, target)
    return triton.compile(_source(compilation), target=target, options=options)


def _options(compilation: Compilation, target: Any) -> dict[str, object]:
    """Triton drops a name that it does not know, so that a typing error would go unseen."""
    from triton.compiler import make_backend

    known = {item.name for item in fields(make_backend(target).parse_options({}))}
    if unknown := sorted(set(compilation.options) - known):
        raise RecordError(
            f"options: got {', '.join(unknown)}, which {compilation.target} has not; "
            f"expected some of {', '.join(sorted(known))}"
        )
    return {
        "num_warps": compilation.num_warps,
        "num_stages": compilation.num_stages,
        **compilation.options,
    }


def _source(compilation: Compilation) -> Any:
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    kernel, types, constants = compilation.kernel, compilation.types, compilation.constants
    if not isinstance(kernel, JITFunction):
        raise RecordError(
            f"kernel: got {type(kernel).__name__}, expected a function of triton.jit; "
            "unset TRITON_INTERPRET, under which nothing is compiled"
        )
    strange = (set(types) | set(constants) | set(compilation.divisible)) - set(kernel.arg_names)
    if strange:
        raise RecordError(f"{kernel.__name__} has no argument {', '.join(sorted(strange))}")
    signature: dict[str, str] = {}
    values: dict[tuple[int, ...], object] = {}
    attributes: dict[tuple[int, ...], list[list[object]]] = {}
    for index, (name, parameter) in enumerate(zip(kernel.arg_names, kernel.params, strict=True)):
        if name in types:
            signature[name] = types[name]
            if facts := _facts_of_argument(compilation, name):
                attributes[(index,)] = facts
        elif name in constants or parameter.has_default:
            signature[name] = "constexpr"
            values[(index,)] = constants.get(name, parameter.default)
        else:
            raise RecordError(f"{kernel.__name__}: {name} has neither a type nor a constant")
    return ASTSource(kernel, signature=signature, constexprs=values, attrs=attributes)


def _facts_of_argument(compilation: Compilation, name: str) -> list[list[object]]:
    """What a launch finds out about an argument: without it loads are not vectorised as they are there."""
    pointer = compilation.types[name].startswith("*")
    facts: list[list[object]] = []
    if pointer or name in compilation.divisible:
        facts.append(["tt.divisibility", 16])
    if pointer and compilation.small_tensors and LIMITS[compilation.target].backend == "hip":
        facts.append(["tt.pointer_range", 32])
    return facts
