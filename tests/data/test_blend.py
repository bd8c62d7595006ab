"""Shares, spread and the numbering of a blend."""

from collections import Counter

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
    seen = Counter(blend.locate(sample)[0] for sample in range(samples))
    for index, weight in enumerate(weights):
        assert abs(seen[index] / samples - weight / sum(weights)) < 0.001
        # The rarest too: to 2 samples, or to half a slot per cycle.
        assert abs(seen[index] - samples * weight / sum(weights)) < 3


@pytest.mark.parametrize("weights", WEIGHTS)
def test_each_dataset_is_numbered_without_gaps(weights: tuple[float, ...]) -> None:
    blend, following = Blend(weights), [0] * len(weights)
    for sample in range(2 * CYCLE + 100):
        dataset, number = blend.locate(sample)
        assert number == following[dataset]
        following[dataset] += 1


@pytest.mark.parametrize("weights", [(0.7, 0.3), (0.999, 0.001), (0.5, 0.5)])
def test_datasets_are_spread_evenly(weights: tuple[float, ...]) -> None:
    """At no point is a dataset ahead of its share of the cycle, or behind it, by a whole sample."""
    blend, seen = Blend(weights), [0] * len(weights)
    for sample in range(CYCLE):
        seen[blend.locate(sample)[0]] += 1
        for count, slots in zip(seen, blend.counts, strict=True):
            assert abs(count - (sample + 1) * slots / CYCLE) < 0.75


def test_a_late_sample_costs_nothing() -> None:
    assert Blend((1.0,)).locate(10**15) == (0, 10**15)
    dataset, number = Blend((1.0, 1.0)).locate(2 * 10**15 + 1)
    assert (dataset, number) == (1, 10**15)


@pytest.mark.parametrize("weights", [(1.0, 1e-6), (), (1.0, 0.0), (1.0, float("inf"))])
def test_weights_that_cannot_be_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"data\.blend"):
        Blend(weights)
