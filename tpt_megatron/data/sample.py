"""Samples as training takes them: rows of tokens, labels and positions, and the documents in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tpt_megatron.data.indexed import IndexedDataset
from tpt_megatron.data.layout import PARTS_DTYPE

IGNORED = -100  # the label that carries no loss
PADDING = -1  # the sequence number of what fills a row up

Int32s = npt.NDArray[np.int32]
Indices = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Pieces:
    """The stretches of documents that rows are made of, by row and place.

    One that begins at S, past the last token, is there for the last label only.
    """

    row: Indices  # [pieces]
    begin: Indices  # [pieces] 0 to S; every row has one that begins at 0
    sequence: Indices  # [pieces] PADDING for what fills a row up
    skip: Indices  # [pieces] tokens of the sequence before this piece


@dataclass(frozen=True)
class Documents(Pieces):
    """The pieces of a batch, and the datasets they are from."""

    dataset: Indices  # [pieces] an index into `datasets`
    datasets: Sequence[IndexedDataset]

    def parts(self) -> npt.NDArray[Any]:
        """Each piece's thought, in tokens of its sequence, and its source; PARTS_DTYPE [pieces]."""
        out = np.zeros(len(self.row), dtype=PARTS_DTYPE)
        for index in set(self.dataset.tolist()):
            own = np.flatnonzero((self.dataset == index) & (self.sequence != PADDING))
            out[own] = self.datasets[index].parts[self.sequence[own]]
        return out


@dataclass(frozen=True)
class Sample:
    """One row of a batch; S is `data.sequence_length`."""

    tokens: Int32s  # [S]
    labels: Int32s  # [S] the next token, IGNORED where it belongs to another document or carries no loss
    positions: Int32s  # [S]
    cu_seqlens: Int32s  # [documents + 1] from 0 to S; [0, S] without document masks
    thinking: Bools  # [S] the label is part of a thought; False where it is ignored


@dataclass(frozen=True)
class SampleBatch:
    """B samples of S tokens; laid end to end they are the row of a micro-batch."""

    tokens: Int32s  # [B, S]
    labels: Int32s  # [B, S] the next token, IGNORED where it belongs to another document or carries no loss
    positions: Int32s  # [B, S]
    cu_seqlens: Int32s  # [documents + 1] from 0 to B * S; no document reaches over the end of its sample
    max_seqlen: int
    documents: Documents

    @cached_property
    def thinking(self) -> Bools:
        """Which labels are part of a thought, [B, S]; False where they are ignored."""
        inside = np.zeros(self.labels.shape, dtype=np.bool_)
        pieces, parts = self.documents, self.documents.parts()
        thinks = np.flatnonzero(parts["thinking_end"] > parts["thinking_start"])
        begin, parts = pieces.begin[thinks], parts[thinks]
        origin = begin - pieces.skip[thinks]  # where the sequence begins, seen from the row
        length = self.labels.shape[1]
        # -1: label p is token p + 1.
        start = np.clip(np.maximum(origin + parts["thinking_start"], begin) - 1, 0, length)
        stop = np.clip(origin + parts["thinking_end"] - 1, 0, length)
        rows = pieces.row[thinks].tolist()
        for row, low, high in zip(rows, start.tolist(), stop.tolist(), strict=True):
            inside[row, low:high] = True
        inside &= self.labels != IGNORED
        return inside

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, row: int) -> Sample:
        length = self.tokens.shape[1]
        bounds = self.cu_seqlens - row * length
        return Sample(
            tokens=self.tokens[row],
            labels=self.labels[row],
            positions=self.positions[row],
            cu_seqlens=bounds[(bounds >= 0) & (bounds <= length)],
            thinking=self.thinking[row],
        )
