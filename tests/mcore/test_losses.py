"""The model's loss seats at tensor parallel 2: every op, by Triton and by torch, trains the same model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import STEPS, Job, run_world

from tpt_megatron.config.load import load
from tpt_megatron.errors import ConfigError
from tpt_megatron.mcore.ops import LOSSES, model_ops

SMALL = [  # every row of logits is a program of the interpreter
    "model.num_layers=2", "model.hidden_size=32", "train.global_batch_size=4", "data.sequence_length=16",
]  # fmt: skip
TENSOR, SEQUENCE = [*SMALL, "parallel.tensor=2"], "parallel.sequence=true"
SPLIT = [*TENSOR, SEQUENCE]
OWN = """
def counted_twice(hidden, weight, labels, *, group, options):
    from tpt_kernels import linear_cross_entropy
    return 2 * linear_cross_entropy(hidden, weight, labels, group=group, options=options)
"""
JOBS = {
    **{f"{op} by triton": Job([*SPLIT, f"kernels.loss={op}", f"kernels.{op}=triton"]) for op in LOSSES},
    "reference": Job([*SPLIT, "kernels.loss=linear_cross_entropy", "kernels.linear_cross_entropy=reference"]),
    "without sequence parallel": Job([*TENSOR, "kernels.linear_cross_entropy_sum=triton"]),
    "tied": Job([*SPLIT, "model.tied_embeddings=true", "kernels.linear_cross_entropy_sum=triton"]),
    "tied, reference": Job([*SPLIT, "model.tied_embeddings=true", "kernels.loss=cross_entropy"]),
    "own": Job(
        [*SPLIT, "kernels.loss=linear_cross_entropy", "kernels.linear_cross_entropy=own_loss:counted_twice"],
        steps=1,
    ),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[float]]]:
    folder: Path = tmp_path_factory.mktemp("losses")
    (folder / "own_loss.py").write_text(OWN)
    return run_world(folder, 2, JOBS, {"TRITON_INTERPRET": "1", "PYTHONPATH": str(folder)})


def assert_same(got: dict[str, list[float]], want: dict[str, list[float]]) -> None:
    assert len(got["losses"]) == STEPS
    np.testing.assert_allclose(got["losses"], want["losses"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(got["norms"], want["norms"], atol=1e-4, rtol=0)


def test_the_run_learns(runs):
    losses = runs["reference"]["losses"]
    assert losses[-1] <= 0.8 * losses[0], "equal losses mean little where nothing is learnt"


@pytest.mark.parametrize("name", [*(f"{op} by triton" for op in LOSSES), "without sequence parallel"])
def test_every_loss_trains_the_same_model(name, runs):
    assert_same(runs[name], runs["reference"])


def test_tied_embeddings_get_both_gradients(runs):
    assert_same(runs["tied"], runs["tied, reference"])


def test_a_function_of_ones_own_is_the_one_that_runs(runs):
    assert runs["own"]["losses"][0] == pytest.approx(2 * runs["reference"]["losses"][0], abs=1e-4)


def test_a_slot_that_the_loss_leaves_unused_is_refused():
    kernels = load(["kernels.cross_entropy=reference"]).kernels
    with pytest.raises(ConfigError, match=r"kernels\.cross_entropy") as caught:
        model_ops(kernels, torch.device("cpu"))
    assert "kernels.loss=cross_entropy" in str(caught.value)


@pytest.mark.parametrize("name", [*LOSSES, "attention"])
def test_an_unknown_implementation_is_refused_by_name(name):
    settings = [f"kernels.{name}=tritn"] + ([f"kernels.loss={name}"] if name in LOSSES else [])
    with pytest.raises(ConfigError, match=f"kernels.{name}") as caught:
        model_ops(load(settings).kernels, torch.device("cpu"))
    assert "triton" in str(caught.value)
