"""RMSNorm, SwiGLU and rotary embedding: torch's and Liger's against float64, and their slots in the model.

Liger's kernels run in Triton's interpreter, as tpt_kernels/testing repairs it, in a process of their own: the
interpreter is chosen when triton is imported.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tpt_megatron.config.load import dump, load
from tpt_megatron.errors import ConfigError
from tpt_megatron.mcore import fused
from tpt_megatron.mcore.fused import fused_op

FOLDER = Path(__file__).parent
EPSILON = 1e-5
TAKES_GRADIENT = {"rms_norm": 2, "swiglu": 1, "rotary": 1}  # of so many of its first inputs
# op -> the shapes of its first input; one row, odd widths, widths that are no power of two, many rows
SHAPES = {
    "rms_norm": [(1, 1, 8), (5, 1, 48), (16, 1, 64), (7, 4, 130)],
    "swiglu": [(1, 1, 2), (5, 1, 2 * 48), (16, 1, 2 * 64), (7, 2 * 33)],
    "rotary": [(1, 1, 2), (5, 3, 24), (16, 8, 64), (7, 2, 96)],
}
CASES = [(op, shape) for op, shapes in SHAPES.items() for shape in shapes]
GAPS, DTYPES = (False, True), (torch.float32, torch.bfloat16)
needs_liger = pytest.mark.skipif(find_spec("liger_kernel") is None, reason="liger_kernel is not installed")


def exact(op: str, inputs: list[Tensor]) -> Tensor:
    """The formulas, in the inputs' dtype; written apart from the functions that they judge."""
    if op == "rms_norm":
        hidden, weight = inputs
        return hidden * (hidden.square().mean(-1, keepdim=True) + EPSILON).rsqrt() * weight
    if op == "swiglu":
        gate, up = inputs[0].unflatten(-1, (2, -1)).unbind(-2)
        return gate * gate.sigmoid() * up
    heads, cosine, sine = inputs
    halves = heads.unflatten(-1, (2, -1)).movedim(-2, -1)  # [tokens, heads, dim / 2, (x1, x2)]
    turned = torch.view_as_complex(halves.contiguous()) * torch.complex(cosine, sine)[:, None]
    return torch.view_as_real(turned).movedim(-1, -2).flatten(-2)


def case_of(op: str, shape: tuple[int, ...], dtype: torch.dtype) -> dict:
    generator = torch.Generator().manual_seed(sum(shape))
    scale = 0.005 if op == "rms_norm" else 1.0  # squares of 2.5e-5, so that the epsilon counts
    inputs = [scale * torch.randn(shape, generator=generator)]
    if op == "rms_norm":
        inputs.append(1 + 0.3 * torch.randn(shape[-1], generator=generator))
    if op == "rotary":
        angle = 20 * torch.rand(shape[0], shape[-1] // 2, generator=generator)
        inputs += [angle.cos(), angle.sin()]
    upstream = torch.randn(exact(op, inputs).shape, generator=generator).to(dtype)
    trained = TAKES_GRADIENT[op]  # the angles stay in float32
    inputs = [x.to(dtype) for x in inputs[:trained]] + inputs[trained:]
    return {"op": op, "inputs": inputs, "upstream": upstream}


def forward_backward(function: Callable[..., Tensor], case: dict) -> list[Tensor]:
    """The output and the gradients."""
    leaves = [x.detach().requires_grad_() for x in case["inputs"][: TAKES_GRADIENT[case["op"]]]]
    output = function([*leaves, *case["inputs"][len(leaves) :]])
    output.backward(case["upstream"].to(output.dtype))
    return [output.detach(), *(leaf.grad for leaf in leaves)]


def wanted(case: dict) -> list[Tensor]:
    double = {**case, "inputs": [x.double() for x in case["inputs"]]}
    return forward_backward(lambda inputs: exact(case["op"], inputs), double)


def assert_near(got: Tensor, want: Tensor, op: str, dtype: torch.dtype) -> None:
    """float32: 16 roundings of 2^-24 at the size of the largest element. bf16: a rounding is 2^-9, and only
    rotary has one; torch on a CPU has three in a row in the other two."""
    assert got.dtype == dtype
    error = got.double() - want
    if dtype == torch.float32:
        assert error.abs().max() <= 16 * 2**-24 * want.abs().max()
    else:
        assert error.norm() <= (1 if op == "rotary" else 3) * 2**-9 * want.norm()


def torch_function(op: str) -> Callable[..., Tensor]:
    more = (EPSILON,) if op == "rms_norm" else ()
    return lambda inputs: getattr(fused, op)(*inputs, *more)


@pytest.fixture(scope="module")
def liger_results(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("liger")
    keys = [(*case, dtype, gaps) for case in CASES for dtype in DTYPES for gaps in GAPS]
    cases = {key: {**case_of(*key[:3]), "gaps": key[3]} for key in keys}
    torch.save(cases, folder / "cases.pt")
    command = [sys.executable, FOLDER / "liger_worker.py", folder / "cases.pt", folder / "results.pt"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=200, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "results.pt")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "shape"), CASES)
def test_torch_against_float64(op, shape, dtype):
    case = case_of(op, shape, dtype)
    for got, want in zip(forward_backward(torch_function(op), case), wanted(case), strict=True):
        assert_near(got, want, op, dtype)


@needs_liger
@pytest.mark.parametrize(("op", "shape"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gaps", GAPS)
def test_liger_against_float64(op, shape, dtype, gaps, liger_results):
    result = liger_results[op, shape, dtype, gaps]
    got = [result["output"], *result["gradients"]]
    for tensor, want in zip(got, wanted(case_of(op, shape, dtype)), strict=True):
        assert_near(tensor, want, op, dtype)
    assert len(result["kernels"]) == 2, "Liger's kernels ran, one each way"


@needs_liger
@pytest.mark.parametrize(("op", "shape"), CASES)
@pytest.mark.parametrize("gaps", GAPS)
def test_liger_writes_into_nothing_that_it_was_given(op, shape, gaps, liger_results):
    assert liger_results[op, shape, torch.bfloat16, gaps]["untouched"]


@needs_liger
@pytest.mark.parametrize(("rows", "row_by_row"), [(32768, None), (32777, True), (5, True)])
def test_ragged_rows_stay_out_of_the_block_kernel(rows, row_by_row, monkeypatch):
    from liger_kernel.ops import rms_norm as library

    from tpt_megatron.mcore import liger

    seen = []

    def forward(x, w, eps, offset, casting_mode, row_mode):
        seen.append(row_mode)
        return x, x, torch.ones(1), 1, 1, casting_mode

    monkeypatch.setattr(library, "rms_norm_forward", forward)
    liger.rms_norm(torch.ones(rows, 2), torch.ones(2), EPSILON)
    assert seen == [row_by_row]


GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.mark.parametrize("op", sorted(SHAPES))
@pytest.mark.parametrize(
    ("value", "device", "installed", "module"),
    [
        ("auto", CPU, True, "fused"),
        ("auto", GPU, False, "fused"),
        ("auto", GPU, True, "liger"),
        ("liger", GPU, True, "liger"),
        ("torch", GPU, True, "fused"),
    ],
)
def test_who_takes_the_seat(op, value, device, installed, module, monkeypatch):
    monkeypatch.setattr(fused, "find_spec", lambda name: name if installed else None)
    function = fused_op(op, value, device)
    assert (function.__module__, function.__name__) == (f"tpt_megatron.mcore.{module}", op)


@pytest.mark.parametrize(
    ("value", "device", "installed", "message"),
    [
        ("liger", CPU, True, "got 'liger' on device cpu, expected 'auto' or 'torch' here; set kernels."),
        ("liger", GPU, False, "not installed, got 'liger'; pip install --no-deps 'liger-kernel>=0.8.5,<0.9'"),
        ("lige", GPU, True, "expected one of auto, liger, torch or 'package.module:attribute'; did you"),
        ("no_such_module:f", GPU, True, "cannot import no_such_module:f"),
    ],
)  # fmt: skip
def test_mistakes_are_named(value, device, installed, message, monkeypatch):
    monkeypatch.setattr(fused, "find_spec", lambda name: name if installed else None)
    with pytest.raises(ConfigError, match=r"^kernels\.swiglu: ") as caught:
        fused_op("swiglu", value, device)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "setting",
    ["glu_linear_offset=1.0", "activation_func_clamp_value=7.0", "bias_activation_fusion=true",
     "add_bias_linear=true", "use_te_activation_func=true"],
)  # fmt: skip
def test_settings_of_the_replaced_activation_are_refused(setting):
    from tpt_megatron.mcore.mlp import GatedMLP
    from tpt_megatron.mcore.settings import transformer_config
    from tpt_megatron.models.family import family_of

    config = load(["train.precision=fp32"])
    field, _, value = setting.partition("=")
    settings = transformer_config(config, family_of(config.model))
    setattr(settings, field, json.loads(value))  # past the checks of megatron-core's own
    with pytest.raises(ConfigError, match=rf"mcore\.{field}: .*got .*kernels\.swiglu"):
        GatedMLP(settings, submodules=None)


OWN = """
from dataclasses import replace
import torch
from tpt_megatron.models.llama import FAMILY as LLAMA

FAMILY = replace(LLAMA, qk_norm=True)

def rms_norm(hidden, weight, epsilon):
    return hidden / (hidden.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight

def swiglu(gate_and_up):
    gate, up = gate_and_up.unflatten(-1, (2, -1)).unbind(-2)
    return gate * gate.sigmoid() * up

def rotary(heads, cosine, sine):
    first, second = heads.unflatten(-1, (2, -1)).unbind(-2)
    turned = torch.complex(first, second) * torch.complex(cosine, sine)[:, None]
    return torch.cat([turned.real, turned.imag], dim=-1)

def other_rms_norm(hidden, weight, epsilon):
    return 0.5 * rms_norm(hidden, weight, epsilon)

def other_swiglu(gate_and_up):
    return 0.5 * swiglu(gate_and_up)

def other_rotary(heads, cosine, sine):
    return 0.5 * rotary(heads, cosine, sine)
"""
TINY = [
    "model.family=own_ops:FAMILY", "model.num_layers=2", "model.hidden_size=32", "model.ffn_hidden_size=48",
    "model.num_attention_heads=4", "model.num_key_value_heads=2", "model.vocab_size=100",
    "model.rope_theta=1000", "model.max_position_embeddings=32", "data.sequence_length=16",
    "train.global_batch_size=4", "train.micro_batch_size=2", "model.init_std=0.15", "train.precision=fp32",
    "optimizer.learning_rate=0.005", "optimizer.warmup_steps=2", "optimizer.epsilon=1e-5",
]  # fmt: skip
JOBS = {
    "auto": [],
    "torch": [f"kernels.{op}=torch" for op in SHAPES],
    "own": [f"kernels.{op}=own_ops:{op}" for op in SHAPES],
    **{f"other {op}": [f"kernels.{op}=own_ops:other_{op}"] for op in SHAPES},
}


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_ops.py").write_text(OWN)
    jobs = {}
    for number, (name, settings) in enumerate(JOBS.items()):
        config = folder / f"{number}.json"
        config.write_text(dump(load([*TINY, *settings])))
        jobs[name] = {"config": str(config), "steps": 4, "load": "", "save": ""}
    (folder / "jobs.json").write_text(json.dumps(jobs))
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, FOLDER / "layout_worker.py", folder / "jobs.json"],
        env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith('{"results"'))
    return {name: result["losses"] for name, result in json.loads(line)["results"].items()}


@pytest.mark.parametrize("name", ["auto", "own"])
def test_the_same_training_whoever_sits_in_the_slots(name, losses):
    np.testing.assert_allclose(losses[name], losses["torch"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("op", sorted(SHAPES))
def test_the_function_in_the_slot_is_the_one_that_runs(op, losses):
    assert abs(losses[f"other {op}"][-1] - losses["torch"][-1]) > 1e-3
