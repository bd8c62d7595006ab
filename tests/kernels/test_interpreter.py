"""The repaired interpreter: undefined lanes, autotune, and what it says of another Triton."""

import os
import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl
from tpt_kernels.testing import install_interpreter

pytestmark = pytest.mark.usefixtures("interpreter")
FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@triton.jit
def masked_copy(x, out, count, OTHER: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, N)
    if OTHER is None:
        value = tl.load(x + at, mask=at < count)
    else:
        value = tl.load(x + at, mask=at < count, other=OTHER)
    tl.store(out + at, value)


@triton.jit
def masked_scalar(x, out, keep, OTHER: tl.constexpr):
    value = tl.load(x, mask=keep > 0) if OTHER is None else tl.load(x, mask=keep > 0, other=OTHER)
    tl.store(out, value)


@triton.autotune([triton.Config({"WRITE": 3}), triton.Config({"WRITE": 4})], key=["count"])
@triton.jit
def tuned(out, count, WRITE: tl.constexpr):
    tl.store(out + tl.program_id(0), WRITE)


@pytest.mark.parametrize("count", [0, 13])
@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.int32, torch.int16, torch.int8])
def test_lanes_that_nothing_defines(dtype, count):
    x = torch.ones(16, dtype=dtype)
    out = torch.zeros_like(x)
    masked_copy[(1,)](x, out, count, None, 16)
    assert (out[:count] == 1).all()
    undefined = out[count:].isnan() if dtype.is_floating_point else out[count:] >= 0x5A
    assert undefined.all()
    masked_scalar[(1,)](x, out, 0, None)
    assert out[0].isnan() if dtype.is_floating_point else out[0] >= 0x5A


@pytest.mark.parametrize("other", [0.0, -2.0])
@pytest.mark.parametrize("dtype", FLOATS)
def test_lanes_that_other_defines(dtype, other):
    x = torch.ones(16, dtype=dtype)
    out = torch.full_like(x, 5)
    masked_copy[(1,)](x, out, 13, other, 16)
    assert (out[13:] == other).all()
    for keep, want in ((0, other), (1, 1)):
        masked_scalar[(1,)](x, out, keep, other)
        assert out[0] == want


def test_autotune_takes_the_first_configuration():
    out = torch.zeros(2, dtype=torch.int32)
    tuned[(2,)](out, 2)
    assert out.tolist() == [3, 3]


def test_installing_twice_changes_nothing():
    from triton.runtime import interpreter

    before = dict(vars(interpreter))
    install_interpreter()
    assert {name for name, value in vars(interpreter).items() if before.get(name) is not value} == set()


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("InterpreterBuilder.cast_impl", "cast_impl"),
        ("TensorDescHandle.materialize_pointers", "materialize_pointers"),
    ],
)
@pytest.mark.parametrize("change", ["gone", "other parameters"])
def test_another_triton_is_named(monkeypatch, path, named, change):
    from triton.runtime import interpreter

    owner, name = path.split(".")
    if change == "gone":
        monkeypatch.delattr(getattr(interpreter, owner), name)
    else:
        monkeypatch.setattr(getattr(interpreter, owner), name, lambda self, source: None)
    with pytest.raises(RuntimeError, match=rf"Triton {triton.__version__} .*{named}"):
        install_interpreter()


def test_triton_imported_without_the_variable():
    """Unset, and set when it is too late: Triton has compiled its own kernels' decorators by then."""
    code = """if True:
        import os, triton
        from tpt_kernels.testing import install_interpreter
        for value in "01":
            os.environ["TRITON_INTERPRET"] = value
            try:
                install_interpreter()
            except RuntimeError as error:
                print(error)
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Triton was imported without TRITON_INTERPRET=1 in the environment; set it") == 2
