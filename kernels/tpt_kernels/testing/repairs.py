"""Triton's interpreter, repaired by subclasses: bfloat16, undefined lanes, memory and races.

Imported by install_interpreter only, after it has seen that Triton's classes are the ones expected here.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, ReduceOps, ScanOps, TensorHandle

from tpt_kernels.testing.bfloat16 import NAN_BITS, narrow, truncate, widen
from tpt_kernels.testing.memory import Access, Extent, Launch, OutOfBoundsError, RaceError

HALF_DTYPES = (tl.bfloat16, tl.float16)
UNDEFINED_BYTE = 0x5A  # an integer lane nobody defined: large, so that as an index it leaves every tensor


class RepairedBuilder(InterpreterBuilder):  # type: ignore[misc]
    """The interpreter's operations, on numpy arrays, with a GPU's results."""

    check_memory = True
    check_races = True
    launch: Launch | None = None  # the launch that is running
    patched: frozenset[str] = (
        frozenset()
    )  # the modules of triton.language that it has put the interpreter into
    other_is_given = False  # whether the tl.load that is running has an `other`

    def get_bf16(self, value: float) -> Any:
        return TensorHandle(narrow(np.array([value])), tl.bfloat16)

    def create_dot(self, a: Any, b: Any, d: Any, *precision: Any) -> Any:
        """bfloat16 and float16 operands in float32, as the tensor cores do; one rounding at the end."""
        if a.dtype.scalar not in HALF_DTYPES or b.dtype.scalar not in HALF_DTYPES:
            return super().create_dot(a, b, d, *precision)
        product = np.matmul(_as_float32(a), _as_float32(b))  # [..., m, n]
        return TensorHandle((product + d.data).astype(d.data.dtype), d.dtype.scalar)

    def binary_op(self, lhs: Any, rhs: Any, op: Any) -> Any:
        if not (_is_bfloat16(lhs) and _is_bfloat16(rhs)):
            return super().binary_op(lhs, rhs, op)
        result = op(widen(lhs.data), widen(rhs.data))
        if result.dtype == np.bool_:
            return TensorHandle(result, tl.int1)
        return TensorHandle(narrow(result), tl.bfloat16)

    def create_minnumf(self, lhs: Any, rhs: Any) -> Any:
        """NaN wins, where a GPU drops it: an undefined lane must not vanish in a minimum."""
        return self.binary_op(lhs, rhs, np.minimum)

    def create_maxnumf(self, lhs: Any, rhs: Any) -> Any:
        """NaN wins, as in create_minnumf."""
        return self.binary_op(lhs, rhs, np.maximum)

    def unary_op(self, arg: Any, op: Any) -> Any:
        if not _is_bfloat16(arg):
            return super().unary_op(arg, op)
        return TensorHandle(narrow(op(widen(arg.data))), tl.bfloat16)

    def create_fma(self, x: Any, y: Any, z: Any) -> Any:
        if not _is_bfloat16(z):
            return super().create_fma(x, y, z)
        return TensorHandle(narrow(_as_float32(x) * _as_float32(y) + _as_float32(z)), tl.bfloat16)

    def cast_impl(self, src: Any, dst_type: Any) -> Any:
        source, target = src.dtype.scalar, dst_type.scalar
        if tl.bfloat16 not in (source, target) or source == target:
            return super().cast_impl(src, dst_type)
        if target == tl.bfloat16:
            return TensorHandle(narrow(src.data), tl.bfloat16)
        return TensorHandle(_as_float32(src).astype(interpreter._get_np_dtype(target)), target)

    def create_fp_to_fp(self, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        source, target = src.dtype.scalar, dst_type.scalar
        if target != tl.bfloat16 or source.primitive_bitwidth == 8:
            return super().create_fp_to_fp(src, dst_type, rounding_mode)
        toward_zero = rounding_mode == interpreter._ir.ROUNDING_MODE.RTZ
        return TensorHandle((truncate if toward_zero else narrow)(src.data), tl.bfloat16)

    def create_masked_load(self, ptrs: Any, mask: Any, other: Any, *policy: Any, **named: Any) -> Any:
        lanes = self._touch("load", ptrs, mask)
        if other is None and not self.other_is_given and not lanes.all():
            other = _undefined(ptrs)
        return super().create_masked_load(ptrs, mask, other, *policy, **named)

    def create_masked_store(self, ptrs: Any, value: Any, mask: Any, *policy: Any, **named: Any) -> Any:
        self._touch("store", ptrs, mask)
        return super().create_masked_store(ptrs, value, mask, *policy, **named)

    def create_descriptor_load(self, desc: Any, indices: Any, *policy: Any) -> Any:
        loaded = super().create_descriptor_load(desc, indices, *policy)
        return _padded(loaded, desc.padding, lambda: desc.materialize_pointers(indices))

    def create_tensor_pointer_load(self, ptr: Any, boundary_check: Any, padding: Any, *policy: Any) -> Any:
        """A load by a block pointer (Triton below 3.9)."""
        loaded = super().create_tensor_pointer_load(ptr, boundary_check, padding, *policy)
        return _padded(loaded, padding, lambda: ptr.materialize_pointers(boundary_check))

    def create_atomic_load(self, *args: Any) -> Any:
        """Triton 3.9's atomic load, a plain one to the interpreter: no part in races."""
        with _NoLaunch(self):
            return super().create_atomic_load(*args)

    def create_atomic_store(self, *args: Any) -> Any:
        """Triton 3.9's atomic store, a plain one to the interpreter: no part in races."""
        with _NoLaunch(self):
            return super().create_atomic_store(*args)

    def create_atomic_poll(self, *args: Any) -> Any:
        """Triton 3.9's atomic poll, plain loads to the interpreter: no part in races."""
        with _NoLaunch(self):
            return super().create_atomic_poll(*args)

    def _touch(self, access: Access, ptrs: Any, mask: Any) -> NDArray[np.bool_]:
        """Reports an access to the launch; the lanes that the mask leaves on."""
        addresses = np.asarray(ptrs.data)
        lanes = np.broadcast_to(_lanes(mask), addresses.shape)
        if self.launch is not None:
            width = max(1, ptrs.get_element_ty().primitive_bitwidth // 8)
            self.launch.touch(access, addresses, lanes, width, self.grid_idx)
        return lanes


class RepairedSemantic(TritonSemantic):  # type: ignore[misc]
    """Remembers that a load has an `other`: a scalar 0.0 is false in Python and would be taken for none."""

    def load(self, ptr: Any, mask: Any, other: Any, *rest: Any, **named: Any) -> Any:
        self.builder.other_is_given = other is not None
        try:
            return super().load(ptr, mask, other, *rest, **named)
        finally:
            self.builder.other_is_given = False


class RepairedReduceOps(ReduceOps):  # type: ignore[misc]
    """Reductions of bfloat16 in float32 with one rounding; NaN wins in a maximum, as in create_minnumf."""

    def min_max(self, input: Any, val_reduce_op: Any, idx_reduce_op: Any = None) -> Any:
        values = input[0] if isinstance(input, tuple) else input
        kept = {np.nanmin: np.min, np.nanmax: np.max, np.nanargmin: np.argmin, np.nanargmax: np.argmax}
        ops = [kept.get(op, op) for op in (val_reduce_op, idx_reduce_op)]
        result = super().min_max(_wide(values), *ops)
        if isinstance(result, tuple):
            return _like(result[0], values), result[1]
        return result if val_reduce_op is None else _like(result, values)

    def sum(self, input: Any) -> Any:
        return _like(super().sum(_wide(input)), input)


class RepairedScanOps(ScanOps):  # type: ignore[misc]
    """Scans of bfloat16 in float32 with one rounding."""

    def cumsum(self, input: Any) -> Any:
        return [_like(result, input) for result in super().cumsum(_wide(input))]

    def cumprod(self, input: Any) -> Any:
        return [_like(result, input) for result in super().cumprod(_wide(input))]


class CheckedExecutor(GridExecutor):  # type: ignore[misc]
    """Runs a grid with the memory and race checks; faults surface as themselves, not as InterpreterError."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        builder = interpreter.interpreter_builder
        try:
            with np.errstate(all="ignore"):  # infinity and NaN come without a word, as on a GPU
                super().__call__(*args, **kwargs)
            builder.launch.finish()
        except InterpreterError as error:
            fault: BaseException | None = error
            while isinstance(fault, InterpreterError):
                fault = fault.__cause__
            if isinstance(fault, OutOfBoundsError | RaceError):
                raise fault from None
            raise
        finally:
            builder.launch = None

    def _init_args_hst(self, args_dev: Any, kwargs: Any) -> Any:
        args, named = super()._init_args_hst(args_dev, kwargs)
        builder = interpreter.interpreter_builder
        given = [*zip(self.arg_names, args, strict=False), *named.items()]
        extents = tuple(Extent.of(n, t) for name, value in given for n, t in _tensors(name, value))
        builder.launch = Launch(self.fn.__name__, extents, builder.check_memory, builder.check_races)
        builder.patched = frozenset()
        return args, named


class _NoLaunch:
    """The accesses made within are not reported."""

    def __init__(self, builder: RepairedBuilder) -> None:
        self.builder, self.launch = builder, builder.launch

    def __enter__(self) -> None:
        self.builder.launch = None

    def __exit__(self, *exception: object) -> None:
        self.builder.launch = self.launch


def patch_once(patch_lang: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Triton's _patch_lang, once a launch and not once a call of tl.sum and the like: 1.3 times as fast."""

    def patch(fn: Any) -> Any:
        builder = interpreter.interpreter_builder
        modules = (value for value in fn.__globals__.values() if inspect.ismodule(value))
        names = frozenset(module.__name__ for module in modules if module in (tl, tl.core))
        if builder.launch is not None and names and names <= builder.patched:
            return interpreter._LangPatchScope()  # nothing to restore
        builder.patched |= names
        return patch_lang(fn)

    return patch


def first_config(self: Any, *args: Any, config: Any, **meta: Any) -> tuple[float, float, float]:
    """Stands for a benchmark: all configurations take equally long, so the first one wins."""
    return (0.0, 0.0, 0.0)


def _tensors(name: str, value: Any) -> list[tuple[str, Tensor]]:
    """The tensors with elements in an argument, named."""
    if isinstance(value, tuple):
        return [found for i, part in enumerate(value) for found in _tensors(f"{name}[{i}]", part)]
    if hasattr(value, "block_shape"):  # a TensorDescriptor
        return _tensors(name, value.base)
    tensor = interpreter._unwrap_tensor(value)
    return [(name, tensor)] if isinstance(tensor, Tensor) and tensor.numel() else []


def _is_bfloat16(handle: Any) -> bool:
    return bool(handle.dtype.scalar == tl.bfloat16 and handle.data.dtype == np.uint16)


def _as_float32(handle: Any) -> NDArray[np.float32]:
    return widen(handle.data) if _is_bfloat16(handle) else handle.data.astype(np.float32)


def _lanes(mask: Any) -> NDArray[np.bool_]:
    """A mask's values: Triton below 3.9 passes a descriptor's as a bare array."""
    return np.asarray(mask if isinstance(mask, np.ndarray) else mask.data, dtype=bool)


def _undefined(ptrs: Any) -> Any:
    """What a masked-off lane holds when nothing defines it."""
    element = ptrs.get_element_ty()
    dtype = interpreter._get_np_dtype(element)
    if dtype.kind == "f":
        fill = np.full(ptrs.data.shape, np.nan, dtype)
    elif element == tl.bfloat16:
        fill = np.full(ptrs.data.shape, NAN_BITS, dtype)
    elif element.is_floating():
        fill = np.full(ptrs.data.shape, 0x7F, dtype)  # NaN in float8e5 and float8e4nv
    else:
        fill = np.full((*ptrs.data.shape, dtype.itemsize), UNDEFINED_BYTE, np.uint8).view(dtype)[..., 0]
    return TensorHandle(fill, element)


def _padded(loaded: Any, padding: Any, pointers_and_mask: Callable[[], tuple[Any, Any]]) -> Any:
    """What was loaded, with NaN outside for padding="nan": stock, a bfloat16 gets the integer of NaN, 0."""
    if padding != interpreter._ir.PADDING_OPTION.PAD_NAN or loaded.dtype != tl.bfloat16:
        return loaded
    inside = _lanes(pointers_and_mask()[1])
    return TensorHandle(np.where(inside, loaded.data, np.uint16(NAN_BITS)), tl.bfloat16)


def _wide(value: Any) -> Any:
    """A bfloat16 tensor as float32; any other as it is."""
    if not _is_bfloat16(value.handle):
        return value
    handle = TensorHandle(widen(value.handle.data), tl.float32)
    return tl.core.tensor(
        handle, value.type.with_element_ty(tl.float32) if value.type.is_block() else tl.float32
    )


def _like(result: Any, value: Any) -> Any:
    """A float32 result back in the bfloat16 of the tensor that it was made from."""
    if not _is_bfloat16(value.handle):
        return result
    handle = TensorHandle(narrow(result.handle.data), tl.bfloat16)
    kind = result.type.with_element_ty(tl.bfloat16) if result.type.is_block() else tl.bfloat16
    return tl.core.tensor(handle, kind)
