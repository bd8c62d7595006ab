"""Packing "concat": the tokens of a dataset in a row, cut every S tokens.

Window w reads tokens w*S to w*S + S, the last one as a label only. What is left at the end of a dataset
is dropped.
"""

import numpy as np
import numpy.typing as npt

from tpt_megatron.data.indexed import IndexedDataset, Integers
from tpt_megatron.data.sample import Bools, Indices, Pieces
from tpt_megatron.errors import InputError

DOCUMENTS_A_WINDOW = 16  # looked for at first; four times as many when a window holds more


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
        dataset, width = self.dataset, DOCUMENTS_A_WINDOW
        first = dataset.offsets.find(start)  # [n] the sequence that a window begins in
        while True:
            sequence = first[:, None] + np.arange(width)  # [n, width]
            begin = dataset.offsets[np.minimum(sequence, dataset.num_sequences - 1)] - start[:, None]
            inside: npt.NDArray[np.bool_] = (sequence < dataset.num_sequences) & (begin <= self.length)
            if width > self.length + 1 or not inside[:, -1].any():
                break
            width *= 4
        skip = np.zeros_like(begin)
        skip[:, 0], begin[:, 0] = -begin[:, 0], 0
        inside[:, 0] = True
        row = np.broadcast_to(rows[:, None], inside.shape)
        return Pieces(row[inside], begin[inside], sequence[inside], skip[inside])
