"""How long things are: an exact count per length, whose size depends on how many lengths differ."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS_PER_OCTAVE = 2  # a bar of a histogram ends at sqrt(2) times the length it begins with
WAITING = 2**17  # (group, length) pairs, half of which wait to be merged: 1 MB
GROUP_SHIFT = 32  # a key is group << 32 | length


@dataclass(frozen=True)
class Lengths:
    """`counts[i]` rows are `values[i]` tokens long."""

    values: NDArray[np.int64]  # [different lengths], ascending
    counts: NDArray[np.int64]  # [different lengths]

    @classmethod
    def empty(cls) -> "Lengths":
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64))

    def add(self, lengths: NDArray[np.integer[Any]]) -> "Lengths":
        """These and `lengths` [rows], none of them negative."""
        return Lengths(*_merged([(self.values, self.counts), np.unique(lengths, return_counts=True)]))

    @property
    def rows(self) -> int:
        return int(self.counts.sum())

    @property
    def total(self) -> int:
        """Tokens of all rows."""
        return int(self.values @ self.counts)

    @property
    def zeros(self) -> int:
        """Rows of length 0, which a logarithmic axis has no place for."""
        return int(self.counts[self.values == 0].sum())

    @property
    def longest(self) -> int:
        return int(self.values[-1]) if len(self.values) else 0

    @property
    def mean(self) -> float:
        return self.total / max(self.rows, 1)

    def quantile(self, share: float) -> int:
        """The shortest length that at least `share` of the rows do not exceed."""
        if not self.rows:
            return 0
        return int(self.values[np.searchsorted(np.cumsum(self.counts), share * self.rows)])

    def longer_than(self, tokens: int) -> int:
        """Rows of more than `tokens` tokens."""
        return int(self.counts[self.values > tokens].sum())

    def histogram(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(edges [bins + 1], rows per bin [bins]) over lengths of 1 and more; a bin holds low <= n < high.

        The edges are the same for any lengths, cut to those in use; no bins where every length is 0.
        """
        present = self.values[self.values > 0]
        if not len(present):
            return np.ones(1), np.zeros(0, np.int64)
        # Half an octave is narrower than 1 token below 4, so edges are whole numbers and equal ones are one.
        octaves = int(np.log2(present[-1])) + 1
        steps = np.arange(octaves * BINS_PER_OCTAVE + 1)
        edges = np.unique(np.round(2.0 ** (steps / BINS_PER_OCTAVE)))
        first, last = np.searchsorted(edges, (present[0], present[-1]), side="right")
        edges = edges[first - 1 : last + 1]
        place = np.searchsorted(edges, present, side="right") - 1
        rows = np.bincount(place, weights=self.counts[self.values > 0], minlength=len(edges) - 1)
        return edges, rows.astype(np.int64)


class GroupedLengths:
    """Lengths of each of many groups, gathered batch by batch."""

    def __init__(self) -> None:
        self._merged = (np.zeros(0, np.int64), np.zeros(0, np.int64))  # keys ascending, rows of each
        self._waiting: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []

    def add(self, groups: NDArray[np.int64], lengths: NDArray[np.integer[Any]]) -> None:
        """Row i of group `groups[i]` is `lengths[i]` tokens long, both [rows]."""
        self._waiting.append(np.unique(groups << GROUP_SHIFT | lengths, return_counts=True))
        # Merged when half as many wait as are there: all merges cost some sorts of the end's size.
        if 2 * sum(len(keys) for keys, _ in self._waiting) > max(WAITING, len(self._merged[0])):
            self._merge()

    def _merge(self) -> None:
        if self._waiting:
            self._merged, self._waiting = _merged([self._merged, *self._waiting]), []

    def of(self, group: int) -> Lengths:
        self._merge()
        keys, counts = self._merged
        first, last = np.searchsorted(keys, (group << GROUP_SHIFT, (group + 1) << GROUP_SHIFT))
        return Lengths(keys[first:last] & (2**GROUP_SHIFT - 1), counts[first:last])


def _merged(
    parts: list[tuple[NDArray[Any], NDArray[np.int64]]],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(keys, counts) over all `parts`; the counts of equal keys are added."""
    keys = np.concatenate([keys for keys, _ in parts]).astype(np.int64)
    counts = np.concatenate([counts for _, counts in parts])
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[starts], np.add.reduceat(counts, starts) if len(starts) else counts[:0]
