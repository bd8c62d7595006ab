"""Whether Triton interprets at all, and whether its interpreter is one that repairs.py was written for."""

import inspect
from typing import Any

# The classes and methods that repairs.py subclasses or calls, with the parameters that it names.
EXPECTED: dict[str, tuple[str, ...]] = {
    "interpreter_builder": (),
    "interpreter_semantic": (),
    "TensorHandle": ("data", "dtype"),
    "TritonSemantic.load": ("self", "ptr", "mask", "other"),
    "InterpreterBuilder.create_dot": ("self", "a", "b", "d"),
    "InterpreterBuilder.binary_op": ("self", "lhs", "rhs", "op"),
    "InterpreterBuilder.unary_op": ("self", "arg", "op"),
    "InterpreterBuilder.create_minnumf": ("self", "lhs", "rhs"),
    "InterpreterBuilder.create_maxnumf": ("self", "lhs", "rhs"),
    "InterpreterBuilder.create_fma": ("self", "x", "y", "z"),
    "InterpreterBuilder.cast_impl": ("self", "src", "dst_type"),
    "InterpreterBuilder.create_fp_to_fp": ("self", "src", "dst_type", "rounding_mode"),
    "InterpreterBuilder.create_masked_load": ("self", "ptrs", "mask", "other"),
    "InterpreterBuilder.create_masked_store": ("self", "ptrs", "value", "mask"),
    "InterpreterBuilder.create_descriptor_load": ("self", "desc", "indices"),
    "TensorDescHandle.materialize_pointers": ("self", "offsets"),
    "ReduceOps.min_max": ("self", "input", "val_reduce_op", "idx_reduce_op"),
    "ReduceOps.sum": ("self", "input"),
    "ScanOps.cumsum": ("self", "input"),
    "ScanOps.cumprod": ("self", "input"),
    "GridExecutor.__call__": ("self",),
    "GridExecutor._init_args_hst": ("self", "args_dev", "kwargs"),
    "_get_np_dtype": ("tt_dtype",),
    "_unwrap_tensor": ("t",),
    "_patch_lang": ("fn",),
    "_LangPatchScope": (),
    "_ir.ROUNDING_MODE.RTZ": (),
    "_ir.PADDING_OPTION.PAD_NAN": (),
}


def require_interpreter() -> tuple[Any, Any]:
    """Triton's modules interpreter and autotuner; RuntimeError where they are not the ones expected."""
    import triton
    import triton.language as tl

    try:
        from triton.runtime import autotuner, interpreter

        interprets = triton.knobs.runtime.interpret
        # Triton's own kernels (tl.sum, tl.cdiv) took their kind when it was imported.
        started_so = isinstance(tl.standard._sum_combine, interpreter.InterpretedFunction)
    except (ImportError, AttributeError) as error:
        raise _unknown(triton.__version__, str(error)) from error
    if not (interprets and started_so):
        raise RuntimeError(
            "the interpreter is off: Triton was imported without TRITON_INTERPRET=1 in the environment; "
            "set it before anything imports triton (torch.compile and megatron-core do)"
        )
    for path, parameters in EXPECTED.items():
        _require(interpreter, path, parameters, triton.__version__)
    _require(autotuner, "Autotuner._bench", ("self", "args", "config", "meta"), triton.__version__)
    return interpreter, autotuner


def _require(module: Any, path: str, parameters: tuple[str, ...], version: str) -> None:
    value = module
    for name in path.split("."):
        if not hasattr(value, name):
            raise _unknown(version, f"no {module.__name__}.{path}")
        value = getattr(value, name)
    if parameters:
        found = tuple(inspect.signature(value).parameters)
        if found[: len(parameters)] != parameters:
            raise _unknown(version, f"{path} takes {found}, expected {parameters} first")


def _unknown(version: str, difference: str) -> RuntimeError:
    return RuntimeError(
        f"Triton {version} has another interpreter than tpt_kernels.testing repairs ({difference}); "
        "it was written for 3.6 to 3.9: install one of these, or adapt repairs.py and internals.py"
    )
