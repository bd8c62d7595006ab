"""The benchmark on a CPU in tiny shapes: it ends, names every peer, and counts as by hand."""
# ruff: noqa: E402

import contextlib
import importlib.util
import io
import itertools
import json
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

import clock
import peers_loss
from clock import Ceilings, Clock, Deadline
from peers_attention import ATTENTION_PEERS
from peers_loss import LINEAR_PEERS, LOGITS_PEERS, logits_inputs, logits_trial
from shapes import AttentionShape, LossShape, attention_shapes, loss_shapes, ragged
from tpt_kernels import cross_entropy
from trial import Ready, run_trial

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


def without_liger(name):
    """Importing as where Liger is not installed: interpreted, its kernels take half a minute."""
    if name.startswith("liger_kernel"):
        raise ModuleNotFoundError("No module named 'liger_kernel'")
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """One run of the tool: its output, its JSON and its plot."""
    folder = tmp_path_factory.mktemp("bench")
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), uncompiled():
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(clock, "FEWEST_REPEATS", 1)
        patch.setattr(clock, "MOST_REPEATS", 2)
        patch.setattr(peers_loss, "import_module", without_liger)
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
    if module != "liger_kernel" and importlib.util.find_spec(module):
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
        assert 1 <= m["repeats"] <= 2
    for c in record["comparisons"]:
        peers = [
            m["milliseconds"] for m in record["measurements"]
            if [m[k] for k in ("op", "phase", "shape")] == [c[k] for k in ("op", "phase", "shape")]
            and m["reason"] is None and not m["contender"].startswith("ours")
        ]  # fmt: skip
        assert c["peer_milliseconds"] == min(peers)
        assert c["ratio"] == pytest.approx(c["milliseconds"] / min(peers))
        assert (c["alternated"] is not None) == (c["ours"] == "ours auto")
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
    assert 10 <= timing.repeats <= 100
    slow = Clock(CPU, 1.0).median(lambda: None, lambda _: time.sleep(0.03))
    assert 30 <= slow.milliseconds < 300
    assert slow.repeats == 10


def test_alternated_runs_are_taken_in_turn():
    order = []
    turns = [(lambda: None, lambda _, name=name: order.append(name)) for name in "ab"]
    turns[1] = (lambda: None, lambda _: (order.append("b"), time.sleep(0.01)))
    fast, slow = Clock(CPU, 1.0).alternated(turns, 3)
    assert order == ["a", "b"] * 4
    assert fast < 5
    assert slow >= 10


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


@pytest.mark.parametrize("peer", ["torch", "torch float32", "liger"])
def test_a_peers_loss_is_the_ops(peer):
    inputs = logits_inputs(LossShape("x", 5, 9, 4, torch.float32), CPU)
    want = cross_entropy(inputs.source, inputs.target, impl="reference")
    torch.testing.assert_close(peers_loss.LOGITS_PEERS[peer](inputs).forward(), want)
