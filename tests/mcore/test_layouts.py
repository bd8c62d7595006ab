"""Every layout trains the same model: losses and gradient norms, from the same weights, over gloo in float32.

Starting a rank costs 10 s of imports, so each world runs all of its jobs in one start.
"""

import numpy as np
import pytest
from worlds import STEPS, Job, run_world

HALF = STEPS // 2
TENSOR, SEQUENCE, PIPELINE = "parallel.tensor=2", "parallel.sequence=true", "parallel.pipeline=2"
TIED = "model.tied_embeddings=true"

# world -> its jobs; worlds run in this order, jobs in theirs
JOBS = {
    1: {
        "one rank": Job([]),
        "one rank, tied": Job([TIED]),
        "one rank, bf16": Job(["train.precision=bf16"]),
    },
    4: {
        "tensor 2 x pipeline 2": Job([TENSOR, SEQUENCE, PIPELINE]),
        "tensor 2 x pipeline 2, half": Job([TENSOR, SEQUENCE, PIPELINE], HALF, write="from-four"),
    },
    2: {
        "tensor 2, sequence parallel": Job([TENSOR, SEQUENCE]),
        "tensor 2": Job([TENSOR]),
        "pipeline 2": Job([PIPELINE]),
        "data 2": Job([]),
        "tensor 2, tied": Job([TENSOR, SEQUENCE, TIED]),
        "pipeline 2, tied": Job([PIPELINE, TIED]),
        "data 2 from four ranks": Job([], HALF, read="from-four"),
        "data 2, half": Job([], HALF, write="from-data"),
        "tensor 2 from data 2": Job([TENSOR, SEQUENCE], HALF, read="from-data"),
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[float]]]:
    folder = tmp_path_factory.mktemp("layouts")
    return {name: run for ranks, jobs in JOBS.items() for name, run in run_world(folder, ranks, jobs).items()}


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
