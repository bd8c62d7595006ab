"""Copies the tokens that stay from the pieces to their place in `.bin`, a region at a time.

A region is one checksum block of the manifest, so its writer also makes its checksum; regions do not depend
on each other and are written by any number of processes.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tpt_megatron.artifact import BLOCK_BYTES
from tpt_megatron.data.piece import Piece

VIEWS_PER_WRITE = 256  # of at most a MiB each; the system takes 1,024 at once


@dataclass(frozen=True)
class Run:
    """Byte ranges [n, 2] of one piece's tokens."""

    piece: int
    ranges: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Region:
    index: int
    runs: tuple[Run, ...]


def kept_ranges(
    lengths: npt.NDArray[np.integer], kept: npt.NDArray[np.bool_], itemsize: int
) -> npt.NDArray[np.int64]:
    """Where the tokens of the sequences that stay lie in their piece, neighbours joined: bytes [n, 2]."""
    ends = np.cumsum(lengths, dtype=np.int64) * itemsize
    edges = np.flatnonzero(np.diff(kept, prepend=False, append=False))
    starts = np.concatenate(([0], ends))
    return starts[edges].reshape(-1, 2)


def plan_regions(pieces: Iterable[npt.NDArray[np.int64]], block_bytes: int = BLOCK_BYTES) -> Iterator[Region]:
    """Cut the byte ranges [n, 2] of all pieces, laid end to end, every `block_bytes`."""
    index, room, runs = 0, block_bytes, list[Run]()
    for piece, ranges in enumerate(pieces):
        while len(ranges):
            ends = np.cumsum(ranges[:, 1] - ranges[:, 0])
            whole = int(np.searchsorted(ends, room, side="right"))
            taken = int(ends[whole - 1]) if whole else 0
            head, ranges = ranges[:whole], ranges[whole:]
            if len(ranges) and taken < room:
                middle = int(ranges[0, 0]) + room - taken
                head = np.concatenate((head, [[ranges[0, 0], middle]]))
                ranges = np.concatenate(([[middle, ranges[0, 1]]], ranges[1:]))
                taken = room
            runs.append(Run(piece, head))
            room -= taken
            if not room:
                yield Region(index, tuple(runs))
                index, room, runs = index + 1, block_bytes, []
    if runs:
        yield Region(index, tuple(runs))


class RegionWriter:
    """Writes a region into the file `target`, which has its full size, and gives (index, SHA-256)."""

    def __init__(self, target: Path, pieces: Sequence[Path], block_bytes: int = BLOCK_BYTES) -> None:
        self._target, self._pieces, self._block_bytes = target, pieces, block_bytes

    def __call__(self, region: Region) -> tuple[int, str]:
        digest, position = hashlib.sha256(), region.index * self._block_bytes
        descriptor = os.open(self._target, os.O_WRONLY)
        try:
            views: list[memoryview] = []
            for run in region.runs:
                for view in Piece(self._pieces[run.piece]).tokens(run.ranges):
                    digest.update(view)
                    views.append(view)
                    if len(views) == VIEWS_PER_WRITE:
                        position += _write_all(descriptor, views, position)
                        views = []
            _write_all(descriptor, views, position)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return region.index, digest.hexdigest()


def _write_all(descriptor: int, views: Sequence[memoryview], position: int) -> int:
    """Bytes written: all of them. A short write is a disk that fills up; the next one says so."""
    total = sum(map(len, views))
    done = os.pwritev(descriptor, views, position) if total else 0
    if done < total:
        rest = memoryview(b"".join(views))[done:]
        while len(rest):
            written = os.pwrite(descriptor, rest, position + total - len(rest))
            rest = rest[written:]
    return total
