"""Shares, spread and the numbering of a blend."""

import numpy as np
import pytest

from tpt_megatron.data.blend import CYCLE, Blend
from tpt_megatron.errors import ConfigError

WEIGHTS = [
    (1.0,),
    (0.7, 0.3),
    (0.999, 0.001),
    (3.0, 1.0, 0.004),
    (0.125, 0.6, 0.275),
    (1.0,) * 37,
    (5.0, 1 / 3),
]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_shares_match_the_weights(weights: tuple[float, ...]) -> None:
    blend, samples = Blend(weights), 100_000
    seen = np.bincount(blend.locate_many(np.arange(samples))[0], minlength=len(weights))
    for index, weight in enumerate(weights):
        assert abs(seen[index] / samples - weight / sum(weights)) < 0.001
        assert abs(seen[index] - samples * weight / sum(weights)) < 3  # the rarest too
        assert abs(blend.shares[index] - weight / sum(weights)) < 1e-6


@pytest.mark.parametrize("weights", WEIGHTS)
def test_each_dataset_is_numbered_without_gaps(weights: tuple[float, ...]) -> None:
    dataset, number = Blend(weights).locate_many(np.arange(2 * CYCLE + 100))
    for index in range(len(weights)):
        own = number[dataset == index]
        assert (own == np.arange(len(own))).all()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_many_at_once_are_those_one_by_one(weights: tuple[float, ...]) -> None:
    blend = Blend(weights)
    samples = np.random.default_rng(0).integers(0, 10**12, size=200)
    samples[:4] = [0, CYCLE - 1, CYCLE, 3 * CYCLE + 7]
    pairs = zip(*(column.tolist() for column in blend.locate_many(samples)), strict=True)
    assert list(pairs) == [blend.locate(sample) for sample in samples.tolist()]


@pytest.mark.parametrize("weights", [(0.7, 0.3), (0.999, 0.001), (0.5, 0.5)])
def test_datasets_are_spread_evenly(weights: tuple[float, ...]) -> None:
    """At no point is a dataset ahead of its share of the cycle, or behind it, by a whole sample."""
    blend = Blend(weights)
    dataset = blend.locate_many(np.arange(CYCLE))[0]
    for index, slots in enumerate(blend.counts):
        ahead = np.cumsum(dataset == index) - np.arange(1, CYCLE + 1) * slots / CYCLE
        assert np.abs(ahead).max() < 0.75


def test_a_late_sample_costs_nothing() -> None:
    assert Blend((1.0,)).locate(10**15) == (0, 10**15)
    dataset, number = Blend((1.0, 1.0)).locate(2 * 10**15 + 1)
    assert (dataset, number) == (1, 10**15)


@pytest.mark.parametrize("weights", [(1.0, 1e-7), (), (1.0, 0.0), (1.0, float("inf"))])
def test_weights_that_cannot_be_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"data\.blend"):
        Blend(weights)
