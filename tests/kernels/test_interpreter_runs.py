"""What the memory checks are made of, against sets of bytes: extents of views, runs, what programs share."""

import numpy as np
import pytest
import torch
from tpt_kernels.testing.memory import Extent, Runs, foreign, merged, overlaps, runs_of


def test_views_of_every_kind_are_held_whole():
    """Strided, transposed, expanded and overlapping views: each element in, nothing between them."""
    base = torch.randn(6, 10, 4)
    views = (base[::2, 1:9:3], base.transpose(0, 2), base[:, :1].expand(6, 5, 4), base[2, 3:, 1])
    for view in (*views, base.view(-1).as_strided((9, 4), (2, 1)), base[0, 0, 0]):
        starts = (
            torch.arange(base.data_ptr() - 40, base.data_ptr() + base.nbytes + 40, 4).numpy().astype("uint64")
        )
        held = Extent.of("view", view).holds(Runs(starts, starts + 4))
        index = torch.arange(base.numel()).as_strided(view.shape, view.stride(), view.storage_offset())
        assert held.nonzero()[0].tolist() == (index.flatten().unique() + 10).tolist()


def bytes_of(runs):
    return [byte for start, stop in zip(*runs, strict=True) for byte in range(int(start), int(stop))]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("strides", [(64, 4), (4, 64), (8, 64), (24, 4), (0, 4), (64, 0), (12, 8)])
def test_runs_are_the_bytes_of_the_lanes(strides, seed):
    """Of row-major, transposed, gapped, overlapping and broadcast tiles, with lanes masked off."""
    random = np.random.default_rng(seed)
    rows, columns = random.integers(1, 9, 2)
    tile = 1000 + np.arange(rows)[:, None] * strides[0] + np.arange(columns)[None, :] * strides[1]
    lanes = random.random(tile.shape) < random.choice([0.5, 1.0])
    runs = runs_of(tile.astype(np.uint64), lanes, 4)
    want = {int(address) + byte for address in tile[lanes] for byte in range(4)}
    assert set(bytes_of(runs)) == want
    union = merged([runs, runs_of(tile[::-1].astype(np.uint64), lanes[::-1], 4)])
    assert bytes_of(union) == sorted(want)
    assert (union.starts[1:] > union.stops[:-1]).all()


@pytest.mark.parametrize("seed", range(50))
def test_what_programs_share_is_found(seed):
    """Random runs of four programs against sets of bytes."""
    random = np.random.default_rng(seed)

    def touched(longest):
        starts = random.integers(0, 120, 4).astype(np.uint64)
        return [
            merged([Runs(starts, starts + random.integers(1, longest, 4).astype(np.uint64))]) for _ in "1234"
        ]

    def flat(parts):
        starts, stops = (np.concatenate(part) for part in zip(*parts, strict=True))
        order = np.argsort(starts, kind="stable")
        owner = np.repeat(np.arange(4), [len(part.starts) for part in parts])
        return Runs(starts[order], stops[order]), owner[order]

    parts = touched(6)
    sets = [set(bytes_of(part)) for part in parts]
    twice = {byte for i in range(4) for j in range(i) for byte in sets[i] & sets[j]}
    assert bytes_of(overlaps(flat(parts)[0])) == sorted(twice)
    lines = np.arange(0, 160, 2).astype(np.uint64)
    stores, storing = (
        Runs(lines, lines + random.integers(1, 3, 80).astype(np.uint64)),
        random.integers(0, 4, 80),
    )
    stored = [set(bytes_of(Runs(stores.starts[storing == i], stores.stops[storing == i]))) for i in range(4)]
    shared = {byte for i in range(4) for j in range(4) if i != j for byte in sets[i] & stored[j]}
    assert bytes_of(foreign(*flat(parts), stores, storing)) == sorted(shared)
