"""The random sample of a budget, against a plain sort; and that its keys are a fair draw."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from tpt_megatron.data.budget import EVERYTHING, keep_threshold, sample_keys

Keys = npt.NDArray[np.uint64]
Tokens = npt.NDArray[np.int64]


def documents(count: int, kind: str = "uniform") -> tuple[Keys, Tokens]:
    random = np.random.default_rng(count)
    keys = random.integers(0, EVERYTHING, count, dtype=np.uint64)
    if kind == "one bucket":
        keys = keys >> np.uint64(40)
    if kind == "samples":  # four rows, with different thoughts, of each document
        keys = np.tile(keys[: count // 4], 4)
    return keys, random.integers(1, 2000, count)


def in_chunks(keys: Keys, tokens: Tokens, size: int) -> Iterator[tuple[Keys, Tokens]]:
    return ((keys[i : i + size], tokens[i : i + size]) for i in range(0, len(keys), size))


def by_sorting(keys: Keys, tokens: Tokens, budget: int) -> set[int]:
    """The rows of the documents in the order of their keys, while they fit."""
    kept: set[int] = set()
    for key in np.unique(keys):
        rows = np.flatnonzero(keys == key)
        budget -= int(tokens[rows].sum())
        if budget < 0:
            break
        kept.update(rows.tolist())
    return kept


@pytest.mark.parametrize("kind", ["uniform", "one bucket", "samples"])
@pytest.mark.parametrize("share", [0.0, 0.0004, 0.1, 0.5, 0.999, 1.0, 2.0])
def test_it_keeps_what_a_sort_keeps(kind: str, share: float) -> None:
    keys, tokens = documents(2000, kind)
    budget = int(share * tokens.sum())
    threshold = keep_threshold(lambda: in_chunks(keys, tokens, 170), budget)
    kept = keys < np.uint64(threshold)
    assert set(np.flatnonzero(kept).tolist()) == by_sorting(keys, tokens, budget)
    assert tokens[kept].sum() <= budget
    assert (threshold == EVERYTHING) == (share >= 1)


@pytest.mark.parametrize("kind", ["uniform", "one bucket"])
def test_a_budget_met_to_the_token_is_filled(kind: str) -> None:
    keys, tokens = documents(500, kind)
    order = np.argsort(keys)
    for rows in (1, 2, 100, 499):
        exact = int(tokens[order[:rows]].sum())
        for budget, kept in ((exact, rows), (exact - 1, rows - 1), (exact + 1, rows)):
            threshold = keep_threshold(lambda: in_chunks(keys, tokens, 500), budget)
            assert np.count_nonzero(keys < np.uint64(threshold)) == kept or tokens[order[rows]] == 1


def test_order_and_chunks_do_not_matter_and_larger_samples_hold_smaller_ones() -> None:
    keys, tokens = documents(3000)
    mixed = np.random.default_rng(0).permutation(3000)
    budget = int(tokens.sum()) // 3
    thresholds = {
        keep_threshold(lambda k=k, t=t, size=size: in_chunks(k, t, size), budget)
        for k, t in ((keys, tokens), (keys[mixed], tokens[mixed]))
        for size in (10, 99, 3000)
    }
    assert len(thresholds) == 1
    assert keep_threshold(lambda: in_chunks(keys, tokens, 99), budget // 2) < thresholds.pop()


def test_keys_are_a_fair_draw() -> None:
    """Uniform (chi-square over 64 bins), independent between seeds, a function of both words."""
    count = 64_000
    # Hashes that are anything but uniform, so that the evenness is the function's own.
    hashes = np.stack([np.arange(count), np.arange(count) // 2], axis=1).astype(np.uint64)
    keys = sample_keys(hashes, 0)
    for drawn in (
        keys,
        sample_keys(hashes, 1),
        sample_keys(hashes, -5),
        sample_keys(hashes[:, ::-1], 0)[::2],
    ):
        for bits in (drawn >> np.uint64(58), drawn & np.uint64(63)):
            expected = len(drawn) / 64
            square = float(
                ((np.bincount(bits.astype(np.intp), minlength=64) - expected) ** 2).sum() / expected
            )
            assert square < 63 + 6 * (2 * 63) ** 0.5
    half = np.uint64(2**63)
    for seed in (1, 2, 2**40):
        both = np.mean((keys < half) & (sample_keys(hashes, seed) < half))
        assert abs(both - 0.25) < 0.01
    assert len(np.unique(keys)) == count
    assert keys[4] != sample_keys(np.array([[4, 3]], np.uint64), 0)[0]
    assert keys.max() < EVERYTHING


def test_known_keys_never_change() -> None:
    """A dataset that is packed again under a later version must be the same sample."""
    hashes = np.array([[0, 0], [1, 2], [2**64 - 1, 2**63]], np.uint64)
    known = [3746585686858627171, 18434577005367856969, 9227449183669386360]
    assert sample_keys(hashes, 0).tolist() == known == sample_keys(hashes, 2**64).tolist()
