"""A trial and a session of the benchmark: a contender that fails, is wrong or comes too late has a reason."""
# ruff: noqa: E402

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import bench_kernels

bench_kernels.add_paths()

import session
from clock import LOST, Ceilings, Clock, Deadline
from record import Record, as_json, comparisons, this_place
from session import OPS, Session, measure
from table import as_markdown
from trial import PeerRefusalError, Ready, Trial, Work, run_trial

CPU = torch.device("cpu")
CEILINGS = Ceilings(teraflops=0.1, terabytes=0.1)
LATE = Deadline.after(3600)

LEAF = torch.arange(1.0, 7.0).requires_grad_()


def trial_of(phases=("forward", "backward")):
    work = dict.fromkeys(phases, Work(1000, "TFLOP/s"))
    return Trial("op", "shape", (LEAF,), torch.ones(6), lambda: None, work)


def right():
    return Ready(lambda: LEAF * 2)


def raising(error):
    raise error


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, upstream):
        raise NotImplementedError("forward only")


REFUSALS = [
    (lambda: raising(ModuleNotFoundError("No module named 'a'")), "not installed: No module named 'a'"),
    (lambda: raising(ImportError("libcuda.so is missing")), "refused: ImportError: libcuda.so is missing"),
    (lambda: raising(PeerRefusalError("not on this device")), "not on this device"),
    (lambda: raising(torch.OutOfMemoryError("tried to allocate")), "out of memory"),
    (lambda: Ready(lambda: raising(ValueError("\n  dim 96\nmore"))), "refused: ValueError: dim 96"),
    (lambda: Ready(lambda: LEAF * 3), "does not count: a norm differs by 50.0%"),
    (lambda: Ready(lambda: LEAF * 2 * (LEAF / LEAF.detach()) ** 2), "does not count: a norm differs"),
    (lambda: Ready(lambda: LEAF * math.nan), "does not count: a norm is not finite"),
]  # fmt: skip


@pytest.mark.parametrize(("contender", "reason"), REFUSALS)
def test_a_contender_that_fails_or_is_wrong_has_a_reason_and_never_counts(contender, reason):
    contenders = {"torch": right, "ours auto": right, "peer": contender}
    found = run_trial(trial_of(), contenders, Clock(CPU, 0.1), CEILINGS, LATE)
    assert [m.contender for m in found] == ["torch"] * 2 + ["ours auto"] * 2 + ["peer"] * 2
    assert all(m.counts for m in found[:4])
    assert all((m.reason or "").startswith(reason) for m in found[4:]), found[4:]
    assert not any(m.counts for m in found[4:])
    assert [c.fastest_peer for c in comparisons(found)] == ["torch"] * 2
    markdown = as_markdown(Record(this_place(CPU), CEILINGS, found))
    assert reason in markdown
    json.dumps(as_json(Record(this_place(CPU), CEILINGS, found)), allow_nan=False)


def test_ours_does_not_count_when_it_differs_from_torchs_wherever_it_stands():
    contenders = {"ours auto": lambda: Ready(lambda: LEAF * 3), "torch": right, "peer": right}
    norms = []
    found = run_trial(trial_of(), contenders, Clock(CPU, 0.1), CEILINGS, LATE, norms)
    assert [m.counts for m in found] == [False] * 2 + [True] * 4
    later = run_trial(
        trial_of(), {"late": lambda: Ready(lambda: LEAF * 3)}, Clock(CPU, 0.1), CEILINGS, LATE, norms
    )
    assert [m.counts for m in later] == [False] * 2


def test_ours_auto_and_the_fastest_peer_are_timed_again_in_turn():
    def slow():
        return Ready(lambda: (time.sleep(0.004), LEAF * 2)[1])

    found = run_trial(
        trial_of(("both",)), {"torch": right, "ours auto": slow, "ours triton": slow, "liger": slow},
        Clock(CPU, 0.1), CEILINGS, LATE,
    )  # fmt: skip
    auto, triton = comparisons(found)
    assert auto.fastest_peer == "torch"
    assert auto.alternated > 5
    assert triton.alternated is None


class LosingClock(Clock):
    """Says that the device is lost from the first time it is asked."""

    def lost(self):
        return f"{LOST} illegal memory access"


def test_after_the_device_is_lost_nothing_is_begun():
    crash = lambda: raising(torch.AcceleratorError("illegal memory access"))  # noqa: E731
    contenders = {"torch": right, "peer": crash, "ours auto": lambda: raising(AssertionError("begun"))}
    found = run_trial(trial_of(("both",)), contenders, LosingClock(CPU, 0.1), CEILINGS, LATE)
    assert found[0].counts
    assert [m.reason for m in found[1:]] == [
        "refused: AcceleratorError: illegal memory access",
        "not begun: the device is lost: illegal memory access",
    ]


def small_session(**named):
    return Session(CPU, ["attention"], ["tiny"], 0.1, LATE, **named)


def test_a_contender_left_out_or_compiled_too_late_says_so(monkeypatch):
    monkeypatch.setattr(session, "COMPILED", ("torch math", "torch flex"))
    kept = []
    late = Deadline(360.0, begun=-1e9)
    _, found = measure(
        small_session(compiling=late, left_out={"torch efficient": "left out"}),
        lambda line: None, lambda ceilings, measurements: kept.append(len(measurements)),
    )  # fmt: skip
    reasons = {m.contender: m.reason for m in found}
    assert reasons["torch efficient"] == "left out"
    assert reasons["torch math"] == reasons["torch flex"] == late.reason
    assert reasons["ours auto"] is None
    assert found[-1].contender == "torch flex", "after all others"
    assert kept == [0, len(found) - 2, len(found)]


def test_a_lost_device_ends_the_session_and_names_what_was_left(monkeypatch):
    monkeypatch.setattr(session, "Clock", LosingClock)
    kept = []
    _, found = measure(
        Session(CPU, OPS, ["tiny"], 0.1, LATE), lambda line: None, lambda c, ms: kept.append(len(ms))
    )
    left = [m for m in found if m.contender == "all"]
    assert [m.op for m in left] == [*OPS[1:]]
    assert {m.reason for m in left} == {"not begun: the device is lost: illegal memory access"}
    assert kept[-1] == len(found)


def test_a_compiler_that_fails_is_a_reason():
    error = subprocess.CalledProcessError(1, ["gcc"])
    (found,) = run_trial(
        trial_of(("both",)), {"peer": lambda: raising(error)}, Clock(CPU, 0.1), CEILINGS, LATE
    )
    assert found.reason.startswith("refused: CalledProcessError")


def test_a_peer_without_a_backward_keeps_its_forward():
    contenders = {"ours auto": right, "peer": lambda: Ready(lambda: NoBackward.apply(LEAF), setup_ms=7.0)}
    forward, backward = run_trial(trial_of(), contenders, Clock(CPU, 0.1), CEILINGS, LATE)[2:]
    assert (forward.phase, forward.reason, forward.setup_ms) == ("forward", None, 7.0)
    assert forward.milliseconds is not None
    assert (backward.phase, backward.milliseconds) == ("backward", None)
    assert "forward only" in backward.reason


def test_after_the_deadline_nothing_is_begun_and_everything_is_named():
    contenders = {"ours auto": lambda: raising(AssertionError("begun")), "peer": right}
    found = run_trial(trial_of(), contenders, Clock(CPU, 0.1), CEILINGS, Deadline(5.0, begun=-1e9))
    assert [(m.contender, m.reason) for m in found] == [
        (name, "not begun: the part's 5 s had passed") for name in contenders for _ in range(2)
    ]
