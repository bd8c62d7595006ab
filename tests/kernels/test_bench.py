"""The benchmark on a CPU in tiny shapes: it ends, names every peer, and counts as by hand."""
# ruff: noqa: E402

import contextlib
import importlib.util
import io
import itertools
import json
import math
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import bench_kernels

bench_kernels.add_paths()

import peers_loss
from clock import Ceilings, Clock, Deadline
from peers_attention import ATTENTION_PEERS
from peers_loss import LINEAR_PEERS, LOGITS_PEERS, logits_inputs, logits_trial
from record import Record, as_json, comparisons, this_place
from shapes import AttentionShape, LossShape, attention_shapes, loss_shapes, ragged
from table import as_markdown
from tpt_kernels import cross_entropy
from trial import PeerRefusalError, Ready, Trial, Work, run_trial

CPU = torch.device("cpu")
CEILINGS = Ceilings(teraflops=0.1, terabytes=0.1)
LATE = Deadline.after(3600)


@contextlib.contextmanager
def uncompiled():
    """megatron-core's functions as they are: compiling them takes half a minute and changes no result."""
    with torch.compiler.set_stance("force_eager"):
        yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """One run of the tool: its output, its JSON and its plot."""
    folder = tmp_path_factory.mktemp("bench")
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), uncompiled():
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(bench_kernels, "QUICK_BUDGET_MS", 4.0)
        files = ["--json", str(folder / "b.json"), "--plot", str(folder / "b.png")]
        assert bench_kernels.main(["--quick", *files]) == 0
    return out.getvalue(), json.loads((folder / "b.json").read_text()), (folder / "b.png").read_bytes()


def test_the_tool_measures_or_names_every_contender(whole_run):
    text, record, _ = whole_run
    want = {
        "attention": {*ATTENTION_PEERS},
        "cross_entropy": {*LOGITS_PEERS, "megatron-core"},
        **{op: {*peers} for op, peers in LINEAR_PEERS.items()},
    }
    shapes = {"attention": {"tiny", "tiny-packed"}}
    for op, peers in want.items():
        found = [m for m in record["measurements"] if m["op"] == op]
        phases = {"forward", "backward"} if op == "attention" else {"both"}
        expected = set(itertools.product(
            peers | {"ours auto", "ours reference"}, phases, shapes.get(op, {"tiny"}))
        )  # fmt: skip
        assert {(m["contender"], m["phase"], m["shape"]) for m in found} == expected
        assert len(found) == len(expected)
    for m in record["measurements"]:
        assert (m["milliseconds"] is None) == (m["reason"] is not None), m
        assert m["contender"] in text
        if m["reason"] is not None:
            assert m["reason"].replace("|", "/") in text
    ran = {(m["op"], m["contender"]) for m in record["measurements"] if m["reason"] is None}
    for op in want:
        assert {(op, "ours auto"), (op, "ours reference")} <= ran
    assert {
        ("attention", "torch flash"),
        ("attention", "torch math"),
        ("cross_entropy", "megatron-core"),
    } <= ran
    assert ("linear_cross_entropy_sum", "torch unfused") in ran


MODULES = [
    ("flash-attn 2", "flash_attn"), ("flash-attn 3", "flash_attn_interface"), ("aiter", "aiter"),
    ("quack", "quack"), ("cce", "cut_cross_entropy"), ("liger", "liger_kernel"),
]  # fmt: skip


@pytest.mark.parametrize(("peer", "module"), MODULES)
def test_a_package_that_is_missing_is_the_reason(whole_run, peer, module):
    if importlib.util.find_spec(module):
        pytest.skip(f"{module} is installed")
    reasons = {m["reason"] for m in whole_run[1]["measurements"] if m["contender"] == peer}
    assert reasons == {f"not installed: No module named '{module}'"}


def test_the_json_is_complete(whole_run):
    _, record, plot = whole_run
    assert set(record) == {"place", "ceilings", "measurements", "comparisons"}
    place = record["place"]
    assert (place["torch"], place["triton"]) == (torch.__version__, place["versions"]["triton"])
    assert place["device"]
    assert place["date"].startswith("20")
    assert {"liger-kernel", "quack-kernels", "cut-cross-entropy", "flash-attn"} <= set(place["versions"])
    assert min(record["ceilings"].values()) > 0
    size, loss = attention_shapes(CPU)["tiny-packed"], loss_shapes(CPU)["tiny"]
    work = {
        ("attention", "forward"): size.forward_flop, ("attention", "backward"): size.backward_flop,
        ("cross_entropy", "both"): loss.logits_traffic, ("linear_cross_entropy", "both"): loss.linear_flop,
        ("linear_cross_entropy_sum", "both"): loss.linear_flop,
    }  # fmt: skip
    counted = [
        m for m in record["measurements"] if m["reason"] is None and m["shape"] in ("tiny-packed", "tiny")
    ]
    for m in counted:
        if m["op"] == "attention" and m["shape"] == "tiny":
            continue
        assert m["rate"] * 1e12 * m["milliseconds"] / 1e3 == pytest.approx(work[m["op"], m["phase"]])
        ceiling = record["ceilings"]["terabytes" if m["op"] == "cross_entropy" else "teraflops"]
        assert m["fraction"] == pytest.approx(m["rate"] / ceiling)
        assert m["unit"] == ("TB/s" if m["op"] == "cross_entropy" else "TFLOP/s")
        assert m["repeats"] >= 3
    for c in record["comparisons"]:
        peers = [
            m["milliseconds"] for m in record["measurements"]
            if [m[k] for k in ("op", "phase", "shape")] == [c[k] for k in ("op", "phase", "shape")]
            and m["reason"] is None and not m["contender"].startswith("ours")
        ]  # fmt: skip
        assert c["peer_milliseconds"] == min(peers)
        assert c["ratio"] == pytest.approx(c["milliseconds"] / min(peers))
    assert len(record["comparisons"]) == 2 * (2 * 2 + 3)
    assert plot.startswith(b"\x89PNG")


def test_unknown_names_are_refused():
    with pytest.raises(SystemExit, match="--only: got attentoin, expected some of attention"):
        bench_kernels.main(["--only", "attentoin"])


@pytest.mark.parametrize("lengths", [(1,), (5,), (3, 1, 4), (2, 2, 7)])
def test_attention_flop_as_counted_by_hand(lengths):
    shape = AttentionShape("x", lengths, heads=3, kv_heads=1, dim=5, dtype=torch.bfloat16)
    pairs = sum(1 for n in lengths for query in range(n) for key in range(n) if key <= query)
    assert shape.visible_pairs == pairs
    assert shape.forward_flop == 3 * pairs * (2 * 5 + 2 * 5)  # a score, and a row of the output
    assert shape.backward_flop == 3 * pairs * 5 * (2 * 5)


def test_loss_work_as_counted_by_hand():
    shape = LossShape("x", tokens=2, vocabulary=7, hidden=3, dtype=torch.bfloat16)
    assert shape.logits_traffic == 2 * 7 * 2 * (1 + 1 + 1)
    assert shape.linear_flop == 2 * (2 * 7 * 3) + 2 * (2 * 3 * 7) + 2 * (7 * 3 * 2)


def test_the_shapes_of_a_gpu_are_the_8b_models():
    heads, losses = attention_shapes(torch.device("cuda")), loss_shapes(torch.device("cuda"))
    assert len(heads) == 8
    assert len(losses) == 4
    assert heads["8k"].forward_flop == pytest.approx(0.55e12, rel=1e-3)  # facts: 0.55 TF
    assert losses["8k"].logits_traffic == pytest.approx(6.3e9, rel=1e-2)  # 6.3 GB
    assert losses["8k"].linear_flop == pytest.approx(25.8e12, rel=1e-2)  # 25.8 TF
    assert (heads["8k-tp8"].heads, heads["8k-tp8"].kv_heads) == (4, 1)
    assert losses["32k-tp8"].vocabulary * 8 == 128_256
    assert heads["32k-packed"].tokens == heads["32k"].tokens == 32768
    assert next(iter(heads)) == "8k"


@pytest.mark.parametrize(("tokens", "documents"), [(48, 4), (8192, 8), (8, 8)])
def test_ragged_documents(tokens, documents):
    lengths = ragged(tokens, documents)
    assert len(lengths) == documents
    assert sum(lengths) == tokens
    assert min(lengths) >= 1
    assert lengths == ragged(tokens, documents)
    assert tokens == documents or len(set(lengths)) > 1


def test_the_clock_does_not_count_preparation():
    timing = Clock(CPU, 1.0).median(lambda: time.sleep(0.02), lambda _: None)
    assert timing.milliseconds < 10
    assert 3 <= timing.repeats <= 100
    slow = Clock(CPU, 1.0).median(lambda: None, lambda _: time.sleep(0.03))
    assert 30 <= slow.milliseconds < 300
    assert slow.repeats == 3


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
    found = run_trial(trial_of(), {"ours auto": right, "peer": contender}, Clock(CPU, 0.1), CEILINGS, LATE)
    assert [m.contender for m in found] == ["ours auto"] * 2 + ["peer"] * 2
    assert all(m.counts for m in found[:2])
    assert all((m.reason or "").startswith(reason) for m in found[2:]), found[2:]
    assert not any(m.counts for m in found[2:])
    assert all(c.fastest_peer is None for c in comparisons(found))
    markdown = as_markdown(Record(this_place(CPU), CEILINGS, found))
    assert reason in markdown
    json.dumps(as_json(Record(this_place(CPU), CEILINGS, found)), allow_nan=False)


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


def test_every_run_of_cross_entropy_sees_the_logits_that_the_last_one_overwrote():
    inputs = logits_inputs(LossShape("x", 5, 9, 4, torch.float32), CPU)
    seen = []

    def overwriting():
        def forward():
            seen.append(inputs.logits.detach().clone())
            return cross_entropy(inputs.logits, inputs.target, impl="reference")

        return Ready(forward)

    (found,) = run_trial(logits_trial(inputs), {"peer": overwriting}, Clock(CPU, 0.1), CEILINGS, LATE)
    assert found.counts
    assert len(seen) > 4
    assert not torch.equal(inputs.logits.detach(), inputs.source), "or this shows nothing"
    assert all(torch.equal(logits, inputs.source) for logits in seen)


def test_megatron_cores_loss_is_the_ops():
    inputs = logits_inputs(LossShape("x", 5, 9, 4, torch.float32), CPU)
    want = cross_entropy(inputs.source, inputs.target, impl="reference")
    with uncompiled():
        torch.testing.assert_close(bench_kernels.megatron_core(inputs).forward(), want)


@pytest.mark.parametrize("peer", ["torch", "torch float32"])
def test_a_peers_loss_is_the_ops(peer):
    inputs = logits_inputs(LossShape("x", 5, 9, 4, torch.float32), CPU)
    want = cross_entropy(inputs.source, inputs.target, impl="reference")
    torch.testing.assert_close(peers_loss.LOGITS_PEERS[peer](inputs).forward(), want)
