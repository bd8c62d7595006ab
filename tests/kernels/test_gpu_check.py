"""`make gpu` on a CPU in tiny shapes: each check passes the ops and fails a wrong one in their place."""
# ruff: noqa: E402

import contextlib
import json
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

import clock
import correctness
from check import Check, Waiting, checks_apart, found_checks, run_checks
from clock import Ceilings, Deadline
from conduct import Size, check_memory, check_no_synchronisation, check_repetition, runs_of
from record import Record, this_place
from targets import target_lines
from test_gpu_correctness import ATTENTION_CASE, LOSS_CASE, one_document
from tpt_kernels import attention, cross_entropy, linear_cross_entropy, linear_cross_entropy_sum
from trial import Measurement

CPU = torch.device("cpu")
CEILINGS = Ceilings(teraflops=0.1, terabytes=0.1)


def raising(error):
    raise error


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


LIGER = dict.fromkeys(("liger", "liger float32 sums"), "left out: interpreted it takes half a minute")


def here(part, ops, folder):
    """A part's checks in this process."""
    file = folder / f"{part}.jsonl"
    gpu_check.run_part(part, ops, SMALL, CPU, file)
    return found_checks(part, file.read_text().splitlines(keepends=True), "ended")


def plan_of(folder, ops):
    results = folder / "RESULTS.md"
    results.write_text("# Results\n")
    parts = {part: partial(here, part, ops, folder) for part in gpu_check.PARTS_S}
    return gpu_check.Plan(CPU, parts, folder, results, LIGER)


def test_make_gpu_checks_measures_and_appends(small_cases, tmp_path, monkeypatch):
    monkeypatch.setattr(clock, "FEWEST_REPEATS", 1)
    monkeypatch.setattr(clock, "MOST_REPEATS", 2)
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
    monkeypatch.setattr(gpu_check, "measure_record", lambda *arguments: record_of(failed_ours()))
    ops = [("attention", "auto", partial(attention, impl="auto")), ("attention", "wrong", one_document)]
    assert gpu_check.run(plan_of(tmp_path, ops)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["FAILED", "FAILED"]
    assert "[wrong]" in lines[0]
    assert "output: error" in lines[0]
    assert lines[1] == "FAILED: benchmark attention forward 8k: ours triton: refused: RuntimeError: no"
    assert ", 2 failed," in (tmp_path / "RESULTS.md").read_text()


@pytest.mark.parametrize(("required", "code"), [(True, 1), (False, 0)])
def test_a_required_check_that_was_not_run_fails_the_command(required, code, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu_check, "measure_record", lambda *arguments: record_of([]))
    plan = replace(plan_of(tmp_path, []), parts={"x": lambda: [Check("gqa 8", None, "no time", required)]})
    assert gpu_check.run(plan) == code
    assert capsys.readouterr().err == ("NOT RUN: gqa 8: no time\n" if required else "")
    assert "- NOT RUN: gqa 8: no time" in plan.results.read_text()


def test_what_was_measured_before_the_run_broke_off_is_written(small_cases, tmp_path, monkeypatch):
    def measure_record(plan, deadline, compiling, keep):
        keep(record_of([timed("cross_entropy", "ours auto", 1.8)]))
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_check, "measure_record", measure_record)
    plan = plan_of(tmp_path, [])
    with pytest.raises(KeyboardInterrupt):
        gpu_check.run(plan)
    assert len(json.loads((tmp_path / "benchmark.json").read_text())["measurements"]) == 1
    assert "met: cross_entropy 8k 1.80 ms" in plan.results.read_text()


def test_without_matplotlib_everything_else_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu_check, "measure_record", lambda *arguments: record_of([]))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert gpu_check.run(replace(plan_of(tmp_path, []), parts={})) == 0
    assert "no plot: " in capsys.readouterr().out
    assert (tmp_path / "benchmark.json").exists()
    assert "## NVIDIA H200" in (tmp_path / "RESULTS.md").read_text()


def test_results_that_do_not_exist_are_refused_at_once(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu_check.main(["--results", str(tmp_path / "none.md")])
    assert "expected a markdown file that exists" in capsys.readouterr().err


def failed_ours():
    return [
        Measurement("attention", "forward", "8k", "ours triton", reason="refused: RuntimeError: no"),
        Measurement("attention", "forward", "8k", "torch flash", reason="refused: RuntimeError: no"),
    ]


def waiting_for(*calls):
    return [Waiting(f"check {i}", call, required=i % 2 == 1) for i, call in enumerate(calls)]


def told(waiting, folder, deadline, lost=lambda: None):
    file = folder / "checks.jsonl"
    with file.open("w") as lines:
        run_checks(waiting, deadline, lost, lines)
    return found_checks("part", file.read_text().splitlines(keepends=True), "exit code 0")


def good():
    return Check("", True, "good")


def test_checks_left_at_the_deadline_are_counted_not_passed(tmp_path, capsys):
    late = Deadline(9.0, begun=-1e9)
    found = told(waiting_for(*[lambda: raising(AssertionError)] * 3), tmp_path, late)
    assert found == [
        Check("check 1", None, late.reason, required=True), Check("part: 2 checks", None, late.reason)
    ]  # fmt: skip
    assert "0 of 3 checks passed, 3 not begun" in capsys.readouterr().out


def test_a_lost_device_ends_a_part(tmp_path):
    crash = lambda: raising(torch.AcceleratorError("illegal memory access"))  # noqa: E731
    checks = waiting_for(good, crash, good, good)
    found = told(checks, tmp_path, Deadline.after(99), lambda: "lost")
    assert [(c.name, c.passed) for c in found] == [
        ("check 0", True), ("check 1", False), ("check 3", None), ("part: 1 checks", None)
    ]  # fmt: skip
    assert found[1].detail == "refused: AcceleratorError: illegal memory access"
    assert found[2].detail == "lost"
    assert len(told(checks, tmp_path, Deadline.after(99))) == 4
    assert all(c.passed is not None for c in told(checks, tmp_path, Deadline.after(99)))


@pytest.mark.parametrize(
    ("last_words", "ended"), [("time.sleep(60)", "was killed after 3 s"), ("os._exit(7)", "exit code 7")]
)
def test_a_kernel_that_hangs_or_dies_ends_its_process_alone(last_words, ended):
    script = f"""
import json, os, sys, time
with open(sys.argv[1], "a") as file:
    for name in "abc":
        print(json.dumps(dict(kind="waiting", name=name, required=True)), file=file)
    print(json.dumps(dict(kind="begun", name="a")), file=file)
    print(json.dumps(dict(kind="done", name="a", passed=True, detail="", required=True)), file=file)
    print(json.dumps(dict(kind="begun", name="b")), file=file, flush=True)
    {last_words}
"""
    found = checks_apart("part", [sys.executable, "-c", script], 3.0)
    assert [(c.name, c.passed) for c in found] == [("a", True), ("b", False), ("c", None)]
    assert found[1].detail.startswith("gave no result: its process")
    assert found[1].detail.endswith(ended)
    assert [c.fails for c in found] == [False, True, True]


def test_a_part_that_tells_nothing_fails():
    (found,) = checks_apart("part", [sys.executable, "-c", "raise SystemExit(3)"], 30.0)
    assert found.fails
    assert found.detail.endswith("exit code 3")


def test_the_required_checks_come_first():
    ops = gpu_check.public_ops(("triton", "auto"))
    waiting = correctness.checks(ops, CPU)
    names = [w.name for w in waiting]
    assert len(set(names)) == len(names) == 2 * (3 * 9 + 36)
    for i, group in enumerate((1, 1, 4, 4, 8, 8)):
        assert f"attention bfloat16 dim 128 gqa {group}," in names[i]
        assert waiting[i].required
    required = [w.required for w in waiting]
    assert required == sorted(required, reverse=True)
    assert sum(required) == 2 * (3 + 3 * 3)


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
        ([replace(timed("cross_entropy", "ours auto", 1.7), reason="does not count")], []),
        ([replace(timed("linear_cross_entropy_sum", "ours auto", 1.7), reason="does not count")], []),
        (
            [
                replace(timed("attention", "ours auto", 1.05), alternated_peer="torch", alternated_ratio=1),
                timed("attention", "torch", 1.0),
            ],
            ["met: ours auto attention both 8k takes 1.00"],
        ),
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
