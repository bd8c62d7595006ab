"""Packing "best_fit": whole documents side by side in bins of S tokens, by the plan made when they were
packed, the rest of a bin filled up with end-of-document.

Only a document longer than a bin is cut. Its whole bins come first; the label of such a bin's last token is
the document's next token, so every token but a document's first is a label once.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from tpt_megatron.data.indexed import IndexedDataset, Integers
from tpt_megatron.data.layout import dataset_file
from tpt_megatron.data.plan import open_plan
from tpt_megatron.data.sample import PADDING, Bools, Indices, Pieces
from tpt_megatron.errors import ConfigError, DamagedError, InputError


class Bins:
    """The bins of one dataset."""

    def __init__(self, dataset: IndexedDataset, length: int) -> None:
        """Raises ConfigError where there is no plan or it is for another data.sequence_length, DamagedError
        where it is not the dataset's."""
        self.dataset, self.length = dataset, length
        self._path = dataset_file(dataset.prefix, "plan")
        again = f"pack it again with data.packing=best_fit data.sequence_length={length}"
        if not dataset.has("plan"):
            raise ConfigError(
                f"data.packing: {dataset.prefix} was packed without a plan",
                got="best_fit", expected="concat", fix=f"{again}, or train with data.packing=concat",
            )  # fmt: skip
        self._plan = open_plan(self._path)
        if self._plan.capacity != length:
            raise ConfigError(
                f"data.sequence_length: {self._path} was made for another",
                got=length, expected=self._plan.capacity,
                fix=f"{again}, or train with data.sequence_length={self._plan.capacity}",
            )  # fmt: skip
        if self._plan.sequences != dataset.num_sequences:
            raise DamagedError(
                f"{self._path}: the plan of another dataset",
                got=f"{self._plan.sequences} sequences", expected=dataset.num_sequences,
            )  # fmt: skip
        self.count = self._plan.num_bins
        if not self.count:
            raise InputError(f"{dataset.prefix}: no documents")
        self.fill_fraction = dataset.num_tokens / (self.count * length)
        self._end = _end_of_document(dataset)

    def fill(self, numbers: Indices, rows: Indices, tokens: Integers, trained: Bools | None) -> Pieces:
        """Put bins `numbers` [n] into the rows `rows` [n] of `tokens` [B, S + 1], and what carries loss
        into those of `trained` [B, S + 1]."""
        low, high = self._plan.offsets[numbers], self._plan.offsets[numbers + 1]
        counts = high - low  # [n] items of each bin
        if (low < 0).any() or (counts < 1).any() or (high > len(self._plan.items)).any():
            raise self._damaged("a bin's offsets are out of order")
        before = np.cumsum(counts) - counts  # [n] items of the bins before
        items = self._plan.items[np.arange(counts.sum()) + np.repeat(low - before, counts)]
        size = items["length"].astype(np.int64)
        inner = np.cumsum(size) - size
        begin = inner - np.repeat(inner[before], counts)  # [items] the place in the row
        total = np.add.reduceat(size, before)  # [n]
        first, goes_on = self._check(items, size, total)
        row = np.repeat(rows, counts)
        last_label = goes_on & (begin + size == self.length)  # read one token on: it is the last label
        columns = (row, begin, begin + size + last_label, first)
        for place, left, right, token in zip(*(c.tolist() for c in columns), strict=True):
            self.dataset.read_into(token, tokens[place, left:right])
            if trained is not None:
                trained[place, left:right] = self.dataset.read_mask(token, right - left)
        closed = ~np.logical_or.reduceat(last_label, before)  # [n] rows that end with a document
        for place, stop in zip(rows[closed].tolist(), total[closed].tolist(), strict=True):
            tokens[place, stop:] = self._end
        return _with_padding(row, begin, items, rows[closed], total[closed])

    def _check(self, items: npt.NDArray[Any], size: Indices, total: Indices) -> tuple[Indices, Bools]:
        """The first token of each item, and whether its document goes on after it."""
        sequence, start = items["sequence"], items["start"].astype(np.int64)
        if (sequence < 0).any() or (sequence >= self.dataset.num_sequences).any():
            raise self._damaged("names a sequence that the dataset does not have")
        whole = self.dataset.lengths[sequence]
        if (start < 0).any() or (size < 1).any() or (start + size > whole).any():
            raise self._damaged("an item is outside its sequence")
        if (total > self.length).any():
            raise self._damaged("a bin is overfull")
        return self.dataset.offsets[sequence] + start, start + size < whole

    def _damaged(self, problem: str) -> DamagedError:
        return DamagedError(f"{self._path}: {problem}", fix=f"run `tpt verify {self.dataset.prefix}`")


def _with_padding(
    row: Indices, begin: Indices, items: npt.NDArray[Any], rows: Indices, stop: Indices
) -> Pieces:
    """The items' pieces, and one of padding from `stop` [rows] on in `rows`; in order."""
    none = np.zeros_like(stop)
    pieces = (
        np.concatenate([row, rows]),
        np.concatenate([begin, stop]),
        np.concatenate([items["sequence"], none + PADDING]),
        np.concatenate([items["start"].astype(np.int64), none]),
    )
    order = np.lexsort((pieces[1], pieces[0]))
    return Pieces(*(column[order] for column in pieces))


def _end_of_document(dataset: IndexedDataset) -> int:
    control = dataset.manifest.about.get("control")
    if not isinstance(control, dict) or not isinstance(control.get("end"), int):
        raise InputError(f"{dataset.prefix}: its manifest does not say which token ends a document")
    return int(control["end"])
