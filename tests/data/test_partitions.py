"""Duplicates by partitions, against a dictionary; in memory and on disk, whatever the keys look like."""

import errno
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tpt_megatron.data import partitions
from tpt_megatron.data.partitions import Spill, find_duplicates

Keys = npt.NDArray[np.uint64]


def by_dictionary(keys: Keys) -> dict[int, int]:
    first: dict[tuple[int, ...], int] = {}
    found = ((row, first.setdefault(tuple(key), row)) for row, key in enumerate(keys.tolist()))
    return {row: earlier for row, earlier in found if earlier != row}


def found_in(folder: Path, keys: Keys, chunk: int, count: int) -> dict[int, int]:
    chunks = (keys[begin : begin + chunk] for begin in range(0, len(keys), chunk))
    out: dict[int, int] = {}
    for later, first in find_duplicates(folder, chunks, count):
        assert later.dtype == first.dtype == np.int64
        assert not out.keys() & set(later.tolist())
        out.update(zip(later.tolist(), first.tolist(), strict=True))
    return out


def uniform(random: np.random.Generator) -> Keys:
    return random.integers(0, 2**64, (3000, 2), dtype=np.uint64)


def with_duplicates(random: np.random.Generator) -> Keys:
    return uniform(random)[random.integers(0, 900, 3000)]


def equal_high_words(random: np.random.Generator) -> Keys:
    return random.integers(0, 20, (3000, 2), dtype=np.uint64) * np.array([1, 2**58], np.uint64)


def one_key(random: np.random.Generator) -> Keys:
    return np.full((3000, 2), 2**64 - 1, np.uint64)


def few_and_many(random: np.random.Generator) -> Keys:
    return np.where(random.random((3000, 1)) < 0.7, one_key(random), uniform(random))


@pytest.mark.parametrize("make", [uniform, with_duplicates, equal_high_words, one_key, few_and_many])
@pytest.mark.parametrize("block", [2**20, 500])
@pytest.mark.parametrize(("chunk", "count"), [(1, 16), (700, 1), (700, 7), (3000, 256)])
def test_pairs_are_those_of_a_dictionary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make, block: int, chunk: int, count: int
) -> None:
    monkeypatch.setattr(partitions, "BLOCK_RECORDS", block)
    keys = make(np.random.default_rng(7))
    expected = by_dictionary(keys)
    assert found_in(tmp_path, keys, chunk, count) == expected
    assert bool(expected) == (make is not uniform)
    assert list(tmp_path.iterdir()) == []


def test_nothing_in_nothing_out(tmp_path: Path) -> None:
    assert found_in(tmp_path, np.empty((0, 2), np.uint64), 1, 4) == {}


@pytest.mark.parametrize("kind", ["hashes", "ordinals"])
def test_files_are_balanced_and_hold_what_memory_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """At most a block of records waits at a time; ordinals as keys spread over the files as hashes do."""
    monkeypatch.setattr(partitions, "BLOCK_RECORDS", 1000)
    keys = uniform(np.random.default_rng(1))
    if kind == "ordinals":
        keys = np.stack([np.arange(3000), ~np.arange(3000)], axis=1).astype(np.uint64)
    keys[2999] = keys[0]
    pairs = find_duplicates(tmp_path, iter(np.split(keys, 30)), 8)
    later, first = next(pairs)
    assert (later.tolist(), first.tolist()) == ([2999], [0])
    pairs.close()
    assert list(tmp_path.iterdir()) == []
    sizes: list[int] = []

    def watched() -> Iterator[Keys]:
        yield from np.split(keys, 30)
        sizes.extend(path.stat().st_size for path in tmp_path.rglob("*.spill"))

    list(find_duplicates(tmp_path, watched(), 8))
    assert len(sizes) == 8
    assert sum(sizes) == 3000 * 24
    assert max(sizes) < 1.3 * min(sizes)


def test_a_spill_keeps_order_and_clears_what_a_killed_run_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "BLOCK_RECORDS", 4)
    folder = tmp_path / "spill"
    folder.mkdir()
    (folder / "00001.spill").write_bytes(b"old")
    (folder / "00077.spill").write_bytes(b"old")
    with Spill(folder, 3, 2) as spill:
        for begin in range(0, 12, 2):
            records = np.arange(2 * begin, 2 * begin + 4, dtype=np.uint64).reshape(2, 2)
            spill.add(records, np.array([1, begin % 3], np.uint16))
        spill.finish()
        parts = [np.concatenate([np.empty((0, 2), np.uint64), *spill.blocks(part)]) for part in range(3)]
        assert not list(folder.iterdir())
    assert not folder.exists()
    assert [part[:, 0].tolist() for part in parts] == [[2, 14], [0, 4, 8, 10, 12, 16, 20, 22], [6, 18]]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "BLOCK_RECORDS", 1000)
    opened = Path.open

    def full(path: Path, mode: str = "r"):
        if mode == "ab" and len(list(path.parent.iterdir())) >= 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return opened(path, mode)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left on device"):
        list(find_duplicates(tmp_path, [uniform(np.random.default_rng(0))], 8))
    assert list(tmp_path.iterdir()) == []
