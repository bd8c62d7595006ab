"""`make gpu` on a CPU in tiny shapes: each check passes the ops and fails a wrong one in their place."""
# ruff: noqa: E402

import contextlib
import json
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import bench_kernels
import gpu_check

bench_kernels.add_paths()

import correctness
from clock import Ceilings, Deadline
from conduct import Size, check_memory, check_no_synchronisation, check_repetition, runs_of
from correctness import AttentionCase, LossCase
from record import Record, this_place
from targets import target_lines
from tpt_kernels import attention, cross_entropy, linear_cross_entropy, linear_cross_entropy_sum
from trial import Measurement

CPU = torch.device("cpu")
CEILINGS = Ceilings(teraflops=0.1, terabytes=0.1)


def raising(error):
    raise error


ATTENTION_CASE = AttentionCase((5, 40, 1, 17), 8, 2, 64, torch.bfloat16, seed=1)
LOSS_CASE = LossCase(77, 1000, 24, 96, torch.bfloat16, seed=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kv_heads", [1, 2, 8])
def test_attention_passes(dtype, kv_heads):
    case = replace(ATTENTION_CASE, dtype=dtype, kv_heads=kv_heads)
    check = correctness.check_attention(partial(attention, impl="auto"), case, CPU)
    assert check.passed, check.detail


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize(
    ("check", "op"),
    [
        (correctness.check_cross_entropy, cross_entropy),
        (correctness.check_linear, linear_cross_entropy),
        (correctness.check_linear_sum, linear_cross_entropy_sum),
    ],
)
def test_losses_pass(check, op, impl, dtype):
    found = check(partial(op, impl=impl), replace(LOSS_CASE, dtype=dtype), CPU)
    assert found.passed, found.detail


def one_document(q, k, v, *, cu_seqlens, max_seqlen):
    return attention(
        q, k, v, cu_seqlens=cu_seqlens[[0, -1]], max_seqlen=int(cu_seqlens[-1]), impl="reference"
    )


def shifted_documents(q, k, v, *, cu_seqlens, max_seqlen):
    bounds = cu_seqlens.clone()
    bounds[2] -= 1
    return attention(q, k, v, cu_seqlens=bounds, max_seqlen=max_seqlen, impl="reference")


def wrong_groups(q, k, v, *, cu_seqlens, max_seqlen):
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    return attention(q[:, order], k, v, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, impl="reference")[
        :, [order.index(i) for i in range(8)]
    ]


def altered(change):
    def op(q, k, v, *, cu_seqlens, max_seqlen):
        out = attention(q, k, v, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, impl="sdpa")
        return change(out)

    return op


def nan_tail(out):
    return torch.cat([out[:-1], out[-1:] * math.nan])


class HalvedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, upstream):
        return upstream * 0.98


def refusing(*tensors, **named):
    raise RuntimeError("out of resource: shared memory")


def scaled(q, k, v, *, cu_seqlens, max_seqlen):
    return attention(q, k, v, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, scale=0.12, impl="sdpa")


WRONG_ATTENTION = [
    one_document, shifted_documents, wrong_groups, scaled, altered(nan_tail), altered(HalvedGradient.apply),
    altered(lambda out: out[:-1]), altered(lambda out: out * 1.02), refusing,
]  # fmt: skip


@pytest.mark.parametrize("op", WRONG_ATTENTION)
def test_a_wrong_attention_fails(op):
    check = correctness.check_attention(op, ATTENTION_CASE, CPU)
    assert check.passed is False
    assert check.detail


def with_options(op, **changes):
    return lambda *tensors, options: op(*tensors, options=replace(options, **changes), impl="reference")


class Truncated(torch.autograd.Function):
    """bf16 gradients cut off, not rounded: what Triton's interpreter does."""

    @staticmethod
    def forward(ctx, logits, target, options):
        wide = logits.detach().float().requires_grad_()
        with torch.enable_grad():
            loss = cross_entropy(wide, target, options=options, impl="reference")
        ctx.wide, ctx.loss = wide, loss
        return loss.detach()

    @staticmethod
    def backward(ctx, upstream):
        (gradient,) = torch.autograd.grad(ctx.loss, ctx.wide, upstream)
        bits = gradient.view(torch.int32) & ~0xFFFF
        return bits.view(torch.float32).bfloat16(), None, None


def coarse(logits, target, *, options):
    """Losses rounded to bf16, their gradient untouched."""
    losses = cross_entropy(logits, target, options=options, impl="reference")
    return losses + (losses.bfloat16() - losses).detach()


def differentiable(hidden, weight, target, token_weight, *, options):
    losses = linear_cross_entropy(hidden, weight, target, options=options)
    return losses @ token_weight, losses


def leaking(logits, target, *, options):
    return cross_entropy(
        logits, target.clamp_min(0), options=replace(options, ignore_index=-1), impl="reference"
    )


WRONG_LOSSES = [
    (correctness.check_cross_entropy, with_options(cross_entropy, z_loss=2e-3)),
    (correctness.check_cross_entropy, with_options(cross_entropy, vocab_size=None)),
    (correctness.check_cross_entropy, with_options(cross_entropy, vocab_size=975)),
    (correctness.check_cross_entropy, lambda x, t, options: Truncated.apply(x, t, options)),
    (correctness.check_cross_entropy, coarse),
    (correctness.check_cross_entropy, leaking),
    (correctness.check_cross_entropy, refusing),
    (correctness.check_linear, with_options(linear_cross_entropy, z_loss=0.0)),
    (correctness.check_linear, with_options(linear_cross_entropy, vocab_size=None)),
    (correctness.check_linear, refusing),
    (correctness.check_linear_sum, with_options(linear_cross_entropy_sum, z_loss=0.0)),
    (
        correctness.check_linear_sum,
        lambda h, w, t, u, options: linear_cross_entropy_sum(h, w, t, torch.ones_like(u), options=options),
    ),
    (correctness.check_linear_sum, differentiable),
]


@pytest.mark.parametrize(("check", "op"), WRONG_LOSSES)
def test_a_wrong_loss_fails(check, op):
    found = check(op, LOSS_CASE, CPU)
    assert found.passed is False
    assert found.detail


SMALL = Size(24, 3, 4, 2, 16, 32, 160, torch.float32)
OPS = {
    "attention": attention, "cross_entropy": cross_entropy,
    "linear_cross_entropy": linear_cross_entropy, "linear_cross_entropy_sum": linear_cross_entropy_sum,
}  # fmt: skip


class NoItem(TorchDispatchMode):
    """On the CPU, what waits for a GPU: a tensor's value read on the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("called a synchronizing operation")
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def no_item():
    with NoItem():
        yield


@pytest.mark.parametrize("name", OPS)
def test_conduct_of_the_ops_and_of_wrong_ones(name):
    def noisy(*tensors, **named):
        return OPS[name](tensors[0] + 1e-3 * torch.rand_like(tensors[0]), *tensors[1:], **named)

    def waiting(*tensors, **named):
        assert tensors[0].sum().item() != 0
        return OPS[name](*tensors, **named)

    good, other, late = (runs_of({name: op}, SMALL, CPU)[name] for op in (OPS[name], noisy, waiting))
    assert check_repetition(name, good).passed
    assert not torch.are_deterministic_algorithms_enabled()
    assert check_repetition(name, other).passed is False
    assert check_no_synchronisation(name, late, no_item).detail.endswith("called a synchronizing operation")
    if name != "attention":  # on the CPU auto reads the documents' bounds
        assert check_no_synchronisation(name, good, no_item).passed


class CountingClock:
    """Says what was in use instead of asking a GPU."""

    device = CPU

    def __init__(self, *peaks):
        self.peaks = list(peaks)

    def peak_bytes(self, run):
        run()
        return self.peaks.pop(0)


SHAPE = (8, 4, 100)
FORWARD_BYTES, BACKWARD_BYTES = 2 * 32 + 4 * 400, 2 * 32 + 2 * 400


@pytest.mark.parametrize(
    ("peaks", "passed"),
    [
        ((FORWARD_BYTES + 99, BACKWARD_BYTES + 99), True),
        ((FORWARD_BYTES + 101, BACKWARD_BYTES), False),
        ((FORWARD_BYTES, BACKWARD_BYTES + 101), False),
        ((None, None), None),
    ],
)
def test_the_memory_bound(peaks, passed):
    found = check_memory("x", linear_cross_entropy_sum, CountingClock(*peaks), SHAPE, bound=100)
    assert found.passed is passed, found.detail


@pytest.fixture
def small_cases(monkeypatch):
    monkeypatch.setattr(correctness, "attention_cases", lambda: [ATTENTION_CASE])
    monkeypatch.setattr(correctness, "loss_cases", lambda: [LOSS_CASE])


def plan_of(folder, ops):
    results = folder / "RESULTS.md"
    results.write_text("# Results\n")
    return gpu_check.Plan(CPU, ops, SMALL, folder, results)


def test_make_gpu_checks_measures_and_appends(small_cases, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "BUDGET_MS", 4.0)
    # megatron-core's functions as they are: compiling them takes half a minute and changes no result
    with torch.compiler.set_stance("force_eager"):
        assert gpu_check.run(plan_of(tmp_path, gpu_check.public_ops(("auto",)))) == 0
    dist.destroy_process_group()
    written = (tmp_path / "RESULTS.md").read_text()
    assert written.startswith("# Results\n\n## ")
    assert "Checks: 8 passed, 0 failed, 0 not run." in written
    assert "| attention" in written
    assert len(json.loads((tmp_path / "benchmark.json").read_text())["measurements"]) > 50
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_make_gpu_fails_with_the_failing_lines(small_cases, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu_check, "measure_record", lambda plan, deadline: record_of(failed_ours()))
    ops = [("attention", "auto", partial(attention, impl="auto")), ("attention", "wrong", one_document)]
    assert gpu_check.run(plan_of(tmp_path, ops)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["FAILED", "FAILED"]
    assert "[wrong]" in lines[0]
    assert "output: error" in lines[0]
    assert lines[1] == "FAILED: benchmark attention forward 8k: ours triton: refused: RuntimeError: no"
    assert (
        "1 failed" in (tmp_path / "RESULTS.md").read_text()
        or "2 failed" in (tmp_path / "RESULTS.md").read_text()
    )


def failed_ours():
    return [
        Measurement("attention", "forward", "8k", "ours triton", reason="refused: RuntimeError: no"),
        Measurement("attention", "forward", "8k", "torch flash", reason="refused: RuntimeError: no"),
    ]


def test_checks_left_at_the_deadline_are_counted_not_passed(capsys):
    found = gpu_check.run_checks("part", [lambda: raising(AssertionError)] * 3, Deadline(9.0, begun=-1e9))
    (left,) = found
    assert left.passed is None
    assert left.name == "part: 3 checks"
    assert "0 of 3 checks passed, 3 not begun" in capsys.readouterr().out


def test_make_gpu_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def timed(op, contender, milliseconds, phase="both", shape="8k"):
    return Measurement(
        op, phase, shape, contender, milliseconds, 9, rate=1.0, unit="TFLOP/s", fraction=0.5
    )  # fmt: skip


def record_of(measurements, device="NVIDIA H200"):
    return Record(replace(this_place(CPU), device=device), CEILINGS, measurements)


@pytest.mark.parametrize(
    ("measurements", "lines"),
    [
        ([timed("cross_entropy", "ours auto", 1.8)], ["met: cross_entropy 8k 1.80 ms"]),
        ([timed("cross_entropy", "ours auto", 1.9)], ["missed: cross_entropy 8k 1.90 ms"]),
        ([timed("cross_entropy", "ours triton", 9.0)], []),
        (
            [
                timed("linear_cross_entropy_sum", "ours auto", 36.0),
                timed("linear_cross_entropy_sum", "liger", 35.0),
            ],
            ["met: linear_cross_entropy_sum 8k", "missed: linear_cross_entropy_sum 8k 36.00 ms, target"],
        ),
        (
            [
                timed("attention", "ours triton", 1.6, "forward"),
                timed("attention", "ours auto", 1.05, "forward"),
                timed("attention", "torch flash", 1.0, "forward"),
            ],
            ["met: ours triton attention forward", "missed: ours auto attention forward"],
        ),
    ],
)  # fmt: skip
def test_targets(measurements, lines):
    found = target_lines(record_of(measurements))
    assert len(found) == len(lines)
    assert all(got.startswith(want) for got, want in zip(found, lines, strict=True)), found


def test_a_time_target_of_an_h200_is_not_asked_of_another_gpu():
    assert target_lines(record_of([timed("cross_entropy", "ours auto", 9.0)], "NVIDIA A100")) == []
