"""How long things are: an exact count per length, small whatever the number of rows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS_PER_OCTAVE = 2  # a bar of a histogram ends at sqrt(2) times the length it begins with


@dataclass(frozen=True)
class Lengths:
    """`counts[n]` rows are n tokens long."""

    counts: NDArray[np.int64]  # [longest + 1]

    @classmethod
    def empty(cls) -> "Lengths":
        return cls(np.zeros(1, np.int64))

    def add(self, lengths: NDArray[np.int32]) -> "Lengths":
        """These and `lengths` [rows], none of them negative."""
        more = np.bincount(lengths, minlength=len(self.counts)).astype(np.int64)
        more[: len(self.counts)] += self.counts
        return Lengths(more)

    @property
    def rows(self) -> int:
        return int(self.counts.sum())

    @property
    def zeros(self) -> int:
        """Rows of length 0, which a logarithmic axis has no place for."""
        return int(self.counts[0])

    @property
    def longest(self) -> int:
        return int(np.flatnonzero(self.counts)[-1]) if self.rows else 0

    @property
    def mean(self) -> float:
        return float(np.arange(len(self.counts)) @ self.counts) / max(self.rows, 1)

    def quantile(self, share: float) -> int:
        """The shortest length that at least `share` of the rows do not exceed."""
        if not self.rows:
            return 0
        return int(np.searchsorted(np.cumsum(self.counts), share * self.rows))

    def histogram(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(edges [bins + 1], rows per bin [bins]) over lengths of 1 and more; a bin holds low <= n < high.

        The edges are the same for any lengths, cut to those in use; no bins where every length is 0.
        """
        present = np.flatnonzero(self.counts)
        present = present[present > 0]
        if not len(present):
            return np.ones(1), np.zeros(0, np.int64)
        # Half an octave is narrower than 1 token below 4, so edges are whole numbers and equal ones are one.
        octaves = int(np.log2(present[-1])) + 1
        steps = np.arange(octaves * BINS_PER_OCTAVE + 1)
        edges = np.unique(np.round(2.0 ** (steps / BINS_PER_OCTAVE)))
        first, last = np.searchsorted(edges, (present[0], present[-1]), side="right")
        edges = edges[first - 1 : last + 1]
        place = np.searchsorted(edges, present, side="right") - 1
        rows = np.bincount(place, weights=self.counts[present], minlength=len(edges) - 1)
        return edges, rows.astype(np.int64)
