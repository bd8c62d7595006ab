"""The Feistel shuffle: a bijection for every size, and one that mixes."""

from itertools import pairwise

import numpy as np
import pytest

from tpt_megatron.data.permutation import Permutation


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 16, 17, 100, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("key", [(0, 0, 0), (1, 2, 3)])
def test_it_is_a_permutation(size: int, key: tuple[int, ...]) -> None:
    permutation = Permutation(size, *key)
    assert sorted(permutation[index] for index in range(size)) == list(range(size))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 4097, 2**31 + 11, 10**15 + 7])
@pytest.mark.parametrize("key", [(0, 0, 0), (2**70, -1, 3)])
def test_many_at_once_are_those_one_by_one(size: int, key: tuple[int, ...]) -> None:
    permutation = Permutation(size, *key)
    indices = np.unique(np.random.default_rng(0).integers(0, size, size=300))
    indices = np.unique(np.concatenate([indices, [0, size - 1]]))[::-1]
    assert permutation.many(indices).tolist() == [permutation[index] for index in indices.tolist()]
    assert permutation.many(indices[:0]).tolist() == []
    with pytest.raises(AssertionError):
        permutation.many(np.array([size]))


@pytest.mark.parametrize("size", [*range(1, 70), 255, 256, 257, 65_537, 300_000])
def test_many_give_a_permutation(size: int) -> None:
    assert np.unique(Permutation(size, 7).many(np.arange(size))).tolist() == list(range(size))


def test_order_depends_on_every_part_of_the_key() -> None:
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (-1, 0, 0), (2**70, 0, 0), (10, 0, 0)]
    orders = {tuple(Permutation(50, *key)[index] for index in range(50)) for key in keys}
    assert len(orders) == len(keys)
    again = [Permutation(50, 1, 0, 0)[index] for index in range(50)]
    assert tuple(again) in orders


def test_the_order_of_a_known_key_never_changes() -> None:
    """A run that resumes under a later version must see the same samples."""
    assert [Permutation(10, 1, 2, 3)[index] for index in range(10)] == [3, 7, 8, 9, 5, 0, 2, 6, 4, 1]


def test_it_mixes() -> None:
    """Against a true shuffle: each index goes to each place equally often (chi-square, 1,000 keys)."""
    size, keys = 20, 1000
    table = np.zeros((size, size))
    neighbours = 0
    for key in range(keys):
        order = [Permutation(size, key)[index] for index in range(size)]
        table[np.arange(size), order] += 1
        neighbours += sum(b == a + 1 for a, b in pairwise(order))
    chi_square = float(((table - keys / size) ** 2 / (keys / size)).sum())
    degrees = (size - 1) ** 2  # 361; its standard deviation is 27
    assert abs(chi_square - degrees) < 6 * (2 * degrees) ** 0.5
    assert abs(neighbours / keys - (size - 1) / size) < 0.2  # a shuffle keeps 0.95 pairs


def test_a_huge_size_costs_nothing() -> None:
    size = 10**15 + 7
    places = {Permutation(size, 5)[index] for index in range(1000)}
    assert len(places) == 1000
    assert min(places) >= 0
    assert max(places) < size
    assert 0.4 < sum(places) / 1000 / size < 0.6
