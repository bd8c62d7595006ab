"""What stays of the pieces is copied in order, whatever the regions' size and the number of processes."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from tpt_megatron.data.piece import CHUNK_BYTES, new_piece
from tpt_megatron.data.regions import RegionWriter, kept_ranges, plan_regions


@pytest.mark.parametrize(
    ("lengths", "kept", "ranges"),
    [
        ([3, 2, 4], [1, 1, 1], [[0, 18]]),
        ([3, 2, 4], [1, 0, 1], [[0, 6], [10, 18]]),
        ([3, 2, 4], [0, 1, 0], [[6, 10]]),
        ([3, 2, 4], [0, 0, 0], []),
        ([3], [1], [[0, 6]]),
    ],
)
def test_kept_ranges(lengths: list[int], kept: list[int], ranges: list[list[int]]) -> None:
    got = kept_ranges(np.array(lengths), np.array(kept, bool), 2)
    assert got.tolist() == ranges


@pytest.mark.parametrize("block_bytes", [2, 100, 4096, 2**20, 2**26])
def test_regions_are_the_kept_tokens_in_order(tmp_path: Path, block_bytes: int) -> None:
    rng = np.random.default_rng(block_bytes)
    small = block_bytes < 4096
    paths, pieces, expected = [], [], b""
    for number in range(3):
        lengths = rng.integers(1, 40 if small else CHUNK_BYTES // 8, 12)
        kept = rng.random(12) < (0.5 if number else 1.0)
        tokens = rng.integers(0, 60000, int(lengths.sum())).astype("<u2")
        paths.append(tmp_path / f"{number}.piece")
        with new_piece(paths[-1], np.dtype("<u2"), "in") as piece:
            piece.add_tokens(tokens)
            piece.finish(last=True)
        pieces.append(kept_ranges(lengths, kept, 2))
        expected += tokens[np.repeat(kept, lengths)].tobytes()
    regions = list(plan_regions(pieces, block_bytes))
    assert [region.index for region in regions] == list(range(-(-len(expected) // block_bytes)))
    target = tmp_path / "bin"
    target.write_bytes(bytes(len(expected)))
    write = RegionWriter(target, paths, block_bytes)
    digests = [write(region) for region in reversed(regions)]
    assert target.read_bytes() == expected
    blocks = [expected[i : i + block_bytes] for i in range(0, len(expected), block_bytes)]
    assert dict(digests) == {i: hashlib.sha256(block).hexdigest() for i, block in enumerate(blocks)}
