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
from tpt_megatron.data.piece import CHUNK_BYTES, Piece

SMALL_BYTES = 2**16


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
            for run in region.runs:
                for data in _joined(Piece(self._pieces[run.piece]).tokens(run.ranges)):
                    digest.update(data)
                    _write_all(descriptor, data, position)
                    position += len(data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return region.index, digest.hexdigest()


def _joined(views: Iterator[memoryview]) -> Iterator[bytes | memoryview]:
    """Small neighbours together. Large views at once: to keep 64 MiB of them for one system call costs 5
    times as much, in page faults of fresh memory."""
    small: list[memoryview] = []
    size = 0
    for view in views:
        if len(view) < SMALL_BYTES and size < CHUNK_BYTES:
            small.append(view)
            size += len(view)
            continue
        yield b"".join(small)
        small, size = [], 0
        yield view
    yield b"".join(small)


def _write_all(descriptor: int, data: bytes | memoryview, position: int) -> None:
    """All of `data`: a short write is a disk that fills up, and the next one says so."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, memoryview(data)[done:], position + done)
