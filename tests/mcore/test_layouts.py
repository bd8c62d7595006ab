"""Every layout trains the same model: losses and gradient norms, from the same weights, over gloo in float32.

Starting a rank costs 10 s of imports, so each world runs all of its jobs in one start.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tpt_megatron.config.load import dump, load

WORKER = Path(__file__).parent / "layout_worker.py"
TINY = [
    "model.num_layers=4", "model.hidden_size=64", "model.ffn_hidden_size=96", "model.num_attention_heads=8",
    "model.num_key_value_heads=4", "model.vocab_size=500", "model.rope_theta=50000",
    "model.max_position_embeddings=64", "data.sequence_length=32", "train.global_batch_size=8",
    "train.micro_batch_size=2",
    # Rows of 0.02 would be driven through zero by the first updates, where RMSNorm has no stable gradient.
    "model.init_std=0.15", "train.precision=fp32", "optimizer.learning_rate=0.005",
    "optimizer.warmup_steps=4",
    # Adam's first steps are the gradient's sign: where a gradient is rounding noise, the default epsilon of
    # 1e-8 would make a whole step of the noise, in any two programs that add in another order.
    "optimizer.epsilon=1e-5",
]  # fmt: skip
STEPS, HALF = 10, 5
TENSOR, SEQUENCE, PIPELINE = "parallel.tensor=2", "parallel.sequence=true", "parallel.pipeline=2"
TIED = "model.tied_embeddings=true"

# world -> name -> (settings, steps, load, save); worlds run in this order, names in theirs
JOBS = {
    1: {
        "one rank": ([], STEPS, "", ""),
        "one rank, tied": ([TIED], STEPS, "", ""),
        "one rank, bf16": (["train.precision=bf16"], STEPS, "", ""),
    },
    4: {
        "tensor 2 x pipeline 2": ([TENSOR, SEQUENCE, PIPELINE], STEPS, "", ""),
        "tensor 2 x pipeline 2, half": ([TENSOR, SEQUENCE, PIPELINE], HALF, "", "from-four"),
    },
    2: {
        "tensor 2, sequence parallel": ([TENSOR, SEQUENCE], STEPS, "", ""),
        "tensor 2": ([TENSOR], STEPS, "", ""),
        "pipeline 2": ([PIPELINE], STEPS, "", ""),
        "data 2": ([], STEPS, "", ""),
        "tensor 2, tied": ([TENSOR, SEQUENCE, TIED], STEPS, "", ""),
        "pipeline 2, tied": ([PIPELINE, TIED], STEPS, "", ""),
        "data 2 from four ranks": ([], HALF, "from-four", ""),
        "data 2, half": ([], HALF, "", "from-data"),
        "tensor 2 from data 2": ([TENSOR, SEQUENCE], HALF, "from-data", ""),
    },
}


def run_world(folder: Path, ranks: int) -> dict[str, dict[str, list[float]]]:
    jobs = {}
    for name, (settings, steps, read, write) in JOBS[ranks].items():
        config = folder / f"{name}.json"
        config.write_text(dump(load([*TINY, *settings])))
        step = str(folder / read / f"step-{HALF:08d}") if read else ""
        jobs[name] = {
            "config": str(config),
            "steps": steps,
            "load": step,
            "save": write and str(folder / write),
        }
    path = folder / f"jobs-{ranks}.json"
    path.write_text(json.dumps(jobs))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [*launcher, str(WORKER), str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith('{"results"'))
    return json.loads(line)["results"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[float]]]:
    folder = tmp_path_factory.mktemp("layouts")
    return {name: run for ranks in JOBS for name, run in run_world(folder, ranks).items()}


def assert_same(got: dict[str, list[float]], want: dict[str, list[float]], first: int = 0) -> None:
    np.testing.assert_allclose(got["losses"], want["losses"][first:], atol=1e-5, rtol=0)
    np.testing.assert_allclose(got["norms"], want["norms"][first:], atol=1e-4, rtol=0)


def test_the_run_learns(runs):
    for name in ("one rank", "one rank, tied"):
        losses = runs[name]["losses"]
        assert losses[-1] <= 0.8 * losses[0], "equal losses mean little where nothing is learnt"


@pytest.mark.parametrize(
    "layout", ["tensor 2, sequence parallel", "tensor 2", "pipeline 2", "tensor 2 x pipeline 2", "data 2"]
)
def test_same_losses_in_every_layout(layout, runs):
    assert_same(runs[layout], runs["one rank"])


@pytest.mark.parametrize("layout", ["tensor 2, tied", "pipeline 2, tied"])
def test_tied_embeddings_in_every_layout(layout, runs):
    assert_same(runs[layout], runs["one rank, tied"])


@pytest.mark.parametrize("layout", ["data 2 from four ranks", "tensor 2 from data 2"])
def test_saved_in_one_layout_goes_on_in_another(layout, runs):
    assert_same(runs[layout], runs["one rank"], first=HALF)


def test_bf16_trains_like_fp32(runs):
    np.testing.assert_allclose(runs["one rank, bf16"]["losses"], runs["one rank"]["losses"], rtol=0.03)
