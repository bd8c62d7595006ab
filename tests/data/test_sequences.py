"""Finding the sequence of a token in a mapped index, and the bits of a mask."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tpt_megatron.data.indexed import IndexedDataset, Offsets
from tpt_megatron.data.writer import IndexedWriter
from tpt_megatron.errors import DamagedError


@pytest.mark.parametrize("kind", ["even", "spread", "front_heavy", "back_heavy"])
@pytest.mark.parametrize("count", [1, 2, 17, 1000, 50_000])
def test_find_is_a_search_of_the_starts(count: int, kind: str) -> None:
    random = np.random.default_rng(count)
    lengths = random.integers(1, 2000, size=count) if kind == "spread" else np.full(count, 7)
    if kind.endswith("heavy"):  # even lengths would guess far off
        half = slice(0, count // 2) if kind == "front_heavy" else slice(count // 2, count)
        lengths[half] = 9000
    starts = np.cumsum(lengths) - lengths
    unaligned = np.frombuffer(b"x" + (2 * starts).astype("<i8").tobytes() + b"more", np.uint8)
    offsets = Offsets(unaligned, 1, count, 2)
    total = int(lengths.sum())
    tokens = np.concatenate([starts, starts + lengths - 1, random.integers(0, total, 500)])
    found = np.array([offsets.find(token) for token in tokens.tolist()])
    assert (found == np.searchsorted(starts, tokens, side="right") - 1).all()
    assert offsets[found[:6].reshape(2, 3)].tolist() == starts[found[:6]].reshape(2, 3).tolist()
    assert [offsets.find(int(starts[-1]), low) for low in (0, count - 1)] == [count - 1] * 2


def masked(prefix: Path, bits: list[int]) -> Path:
    with IndexedWriter(prefix, 600) as writer:
        writer.add(list(range(len(bits))), 0, 0, 0)
        packed = np.packbits(np.array(bits, np.uint8), bitorder="little")
        writer.temporary("mask").write_bytes(packed.tobytes())
        writer.finish({}, ["mask"])
    return prefix


@pytest.mark.parametrize("size", [1, 7, 8, 9, 50])
def test_every_stretch_of_a_mask(tmp_path: Path, size: int) -> None:
    bits = np.random.default_rng(size).integers(0, 2, size).tolist()
    dataset = IndexedDataset(masked(tmp_path / "x", bits))
    for start in range(size):
        for count in range(size - start + 1):
            assert dataset.read_mask(start, count).tolist() == [bool(b) for b in bits[start : start + count]]
    with pytest.raises(IndexError):
        dataset.read_mask(1, size)


def test_a_mask_of_another_size_does_not_open(tmp_path: Path) -> None:
    prefix = masked(tmp_path / "x", [1] * 17)
    with IndexedWriter(prefix, 600) as writer:
        writer.add([1] * 9, 0, 0, 0)
        writer.temporary("mask").write_bytes(b"123")
        writer.finish({}, ["mask"])
    with pytest.raises(DamagedError, match=r"x\.mask: wrong size"):
        IndexedDataset(prefix)


def test_no_mask_is_all_loss(tmp_path: Path, make_dataset: Callable[..., Path]) -> None:
    dataset = IndexedDataset(make_dataset(tmp_path / "x", [([1, 2, 3], 0, 0)]))
    assert dataset.read_mask(1, 2).tolist() == [True, True]
