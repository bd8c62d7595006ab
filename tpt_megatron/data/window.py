"""Packing "concat": the tokens of a dataset in a row, cut every S tokens.

Window w reads tokens w*S to w*S + S, the last one as a label only. What is left at the end of a dataset
is dropped.
"""

import numpy as np

from tpt_megatron.data.indexed import IndexedDataset, Integers
from tpt_megatron.data.sample import Bools, Indices, Pieces
from tpt_megatron.errors import InputError

NEAR = 32  # sequences on, where a window has mostly ended


class Windows:
    """The windows of one dataset."""

    def __init__(self, dataset: IndexedDataset, length: int) -> None:
        """Raises InputError for a dataset that is shorter than a window."""
        self.dataset, self.length = dataset, length
        self.count = (dataset.num_tokens - 1) // length
        self.fill_fraction = 1.0  # of a window are tokens of documents
        if self.count < 1:
            raise InputError(
                f"{dataset.prefix}: too short for one window of data.sequence_length",
                got=f"{dataset.num_tokens} tokens", expected=f"more than {length}",
            )  # fmt: skip

    def fill(self, numbers: Indices, rows: Indices, tokens: Integers, trained: Bools | None) -> Pieces:
        """Put windows `numbers` [n] into the rows `rows` [n] of `tokens` [B, S + 1], and what carries loss
        into those of `trained` [B, S + 1]."""
        start = numbers * self.length
        for row, first in zip(rows.tolist(), start.tolist(), strict=True):
            self.dataset.read_into(first, tokens[row])
            if trained is not None:
                trained[row] = self.dataset.read_mask(first, self.length + 1)
        return self._pieces(rows, start)

    def _pieces(self, rows: Indices, start: Indices) -> Pieces:
        offsets, length = self.dataset.offsets, self.length
        tokens = start.tolist()
        # [n] the sequence that a window begins in, and the one that its last label is in.
        first: Indices = np.array([offsets.find(token) for token in tokens])
        last = [self._last(low, t + length) for low, t in zip(first.tolist(), tokens, strict=True)]
        counts = np.array(last) - first + 1  # [n] sequences of each window
        before = np.cumsum(counts) - counts
        sequence = np.arange(counts.sum()) + np.repeat(first - before, counts)
        begin = offsets[sequence] - np.repeat(start, counts)
        skip = np.zeros_like(begin)
        skip[before], begin[before] = -begin[before], 0
        return Pieces(np.repeat(rows, counts), begin, sequence, skip)

    def _last(self, first: int, token: int) -> int:
        """The sequence that `token` is in, known to be `first` or later: mostly little later."""
        count, near = self.dataset.num_sequences, first + NEAR
        if near < count and self.dataset.offsets[near] > token:
            return self.dataset.offsets.find(token, first, near)
        return self.dataset.offsets.find(token, first, min(first + 1 + self.length, count))
