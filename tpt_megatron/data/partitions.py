"""Equal keys among any number of rows in flat memory: the keys go to partition files by their top bits.

20M keys take 5 CPU-s and 480 MB of disk; the process peaks at 115 MB with 2M keys and with 20M.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Ordinals = npt.NDArray[np.int64]

BLOCK_RECORDS = 2**20  # records in memory at a time: 24 MiB of keys with their ordinals
PARTITIONS = 256  # 270M keys until a partition is more than a block


class Spill:
    """Records of `width` uint64 in `partitions` parts, each in the order of adding, on disk.

    Less than a block of records stays in memory, all of it as part 0.
    `folder` is made for it and goes with it, files that a killed run left there too. A part's file goes as
    soon as it is read. A full disk raises the OSError that it is.
    """

    def __init__(self, folder: Path, partitions: int, width: int) -> None:
        assert 1 <= partitions <= 2**16
        self.partitions, self._folder, self._width = partitions, folder, width
        self._records: list[Words] = []
        self._places: list[npt.NDArray[np.uint16]] = []
        self._waiting, self._on_disk = 0, False

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._remove_files()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove_files()
        self._folder.rmdir()

    def add(self, records: Words, places: npt.NDArray[np.uint16]) -> None:
        """Put record i, `records` [n, width], into part `places[i]`, `places` [n]."""
        self._records.append(records)
        self._places.append(places)
        self._waiting += len(records)
        if self._waiting >= BLOCK_RECORDS:
            self._write(*self._parted())

    def finish(self) -> None:
        """No more is added; before the first `blocks`."""
        if self._on_disk and self._waiting:
            self._write(*self._parted())

    def blocks(self, partition: int) -> Iterator[Words]:
        """The records of a part, [at most BLOCK_RECORDS, width] at a time; once."""
        if not self._on_disk:
            if partition == 0 and self._waiting:
                yield np.concatenate(self._records)
            return
        path = self._path(partition)
        if not path.exists():
            return
        with path.open("rb") as file:
            while len(words := np.fromfile(file, np.uint64, BLOCK_RECORDS * self._width)):
                yield words.reshape(-1, self._width)
        path.unlink()

    def _parted(self) -> tuple[Words, npt.NDArray[np.intp]]:
        """What waits in memory, in the order of its parts, and where each of them begins and ends."""
        records, places = np.concatenate(self._records), np.concatenate(self._places)
        self._records, self._places, self._waiting = [], [], 0
        order = np.argsort(places, kind="stable")  # of 16 bits, so a radix sort
        bounds = np.searchsorted(places[order], np.arange(self.partitions + 1))
        return np.take(records, order, axis=0), bounds  # take: a quarter of the time of records[order]

    def _write(self, records: Words, bounds: npt.NDArray[np.intp]) -> None:
        self._on_disk = True
        for partition in np.flatnonzero(np.diff(bounds)).tolist():
            # Opened for each write: thousands of files may not be open at a time.
            with self._path(partition).open("ab") as file:
                file.write(records[bounds[partition] : bounds[partition + 1]].data)

    def _path(self, partition: int) -> Path:
        return self._folder / f"{partition:05d}.spill"

    def _remove_files(self) -> None:
        for path in self._folder.glob("*.spill"):
            path.unlink()


def find_duplicates(
    folder: Path, keys: Iterable[Words], partitions: int = PARTITIONS
) -> Iterator[tuple[Ordinals, Ordinals]]:
    """Every row whose key an earlier row has, and the first such row: pairs (later [k], first [k]).

    `keys` are uint64 [n, 2], of any distribution; rows are numbered from 0 in the order fed. Pairs come in
    no order, after the last key. Temporary files lie in `folder`/partitions, so one call at a time. Memory
    grows neither with rows, up to a block a partition, nor with how often a key occurs.
    """
    with Spill(folder / "partitions", partitions, 3) as spill:
        ordinal = 0
        for chunk in keys:
            records = np.empty((len(chunk), 3), np.uint64)
            records[:, :2] = chunk
            records[:, 2] = np.arange(ordinal, ordinal + len(chunk), dtype=np.uint64)
            # Mixed, for keys that are no hashes: ordinals that stand in for rows already dropped.
            mixed = (chunk[:, 0] * np.uint64(0x9E3779B97F4A7C15) + chunk[:, 1]) >> np.uint64(32)
            spill.add(records, (mixed * np.uint64(partitions) >> np.uint64(32)).astype(np.uint16))
            ordinal += len(chunk)
        spill.finish()
        for partition in range(partitions):
            yield from _duplicates(spill.blocks(partition))


def _duplicates(blocks: Iterator[Words]) -> Iterator[tuple[Ordinals, Ordinals]]:
    """The pairs of one partition. Between blocks one record a key stays, so a frequent key costs nothing."""
    records, new = np.empty((0, 3), np.uint64), np.empty(0, np.bool_)
    for block in blocks:
        records = np.concatenate([records[new], block]) if len(new) else block
        records = np.take(records, _grouped(records), axis=0)
        new = np.ones(len(records), np.bool_)
        new[1:] = (records[1:, 0] != records[:-1, 0]) | (records[1:, 1] != records[:-1, 1])
        later = np.flatnonzero(~new)
        if len(later):
            heads = np.flatnonzero(new)[np.cumsum(new)[later] - 1]
            yield records[later, 2].astype(np.int64), records[heads, 2].astype(np.int64)


def _grouped(records: Words) -> npt.NDArray[np.intp]:
    """The order [n] that puts equal keys side by side, each group in the order of the records."""
    high = np.ascontiguousarray(records[:, 0])
    order = np.argsort(high)  # of one word, not stable: 4 times faster than sorting by key and ordinal
    sorted_high = high[order]
    same = sorted_high[1:] == sorted_high[:-1]
    shared = np.zeros(len(records), np.bool_)
    shared[1:] |= same
    shared[:-1] |= same
    rows = order[shared]
    order[shared] = rows[np.lexsort((rows, records[rows, 1], high[rows]))]
    return order
