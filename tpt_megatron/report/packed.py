"""Whole sequences of a dataset as a model is trained on them, in pieces that a page can colour."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tpt_megatron.data.indexed import IndexedDataset
from tpt_megatron.report.decoding import Decoder
from tpt_megatron.report.lineage import Row
from tpt_megatron.report.phrases import thought_of

HEAD_TOKENS, TAIL_TOKENS = 600, 300  # of a document or a thought that is longer than both


@dataclass(frozen=True)
class Piece:
    """Tokens of one kind in a row; or, with `cut`, the place of so many that are not shown."""

    text: str
    thought: bool
    control: bool  # one token that was put in by id
    trained: bool  # it carries loss when it is a label
    cut: int = 0
    id: int | None = None  # of a control token


@dataclass(frozen=True)
class PackedSequence:
    number: int
    row: Row | None
    tokens: int
    pieces: tuple[Piece, ...]


def read_sequence(dataset: IndexedDataset, decoder: Decoder, number: int, row: Row | None) -> PackedSequence:
    """Sequence `number`; the middle of a long part is neither read nor shown."""
    start, end = thought_of(dataset, number)
    length = int(dataset.lengths[number])
    parts = ((0, start, False), (start, end, True), (end, length, False))
    pieces = [
        piece
        for first, last, thought in parts
        for piece in _part(dataset, decoder, number, first, last, thought)
    ]
    return PackedSequence(number, row, length, tuple(pieces))


def _part(
    dataset: IndexedDataset, decoder: Decoder, number: int, first: int, last: int, thought: bool
) -> Iterator[Piece]:
    """Tokens `first:last` of a sequence, cut in their middle where they are many."""
    missing = last - first - HEAD_TOKENS - TAIL_TOKENS
    if missing <= 0:
        yield from _pieces(dataset, decoder, number, first, last, thought)
        return
    yield from _pieces(dataset, decoder, number, first, first + HEAD_TOKENS, thought)
    yield Piece("", thought, control=False, trained=True, cut=missing)
    yield from _pieces(dataset, decoder, number, last - TAIL_TOKENS, last, thought)


def _pieces(
    dataset: IndexedDataset, decoder: Decoder, number: int, first: int, last: int, thought: bool
) -> Iterator[Piece]:
    at = dataset.offsets[number] + first
    ids, trained = decoder.read(dataset, at, last - first), dataset.read_mask(at, last - first)
    control = decoder.is_control(ids)
    # A piece ends where the kind changes, and around each control token.
    if not len(ids):
        return
    ends = np.flatnonzero(control[1:] | control[:-1] | (trained[1:] != trained[:-1])) + 1
    for run in np.split(np.arange(len(ids)), ends):
        own, one = ids[run], int(ids[run[0]])
        is_control = bool(control[run[0]])
        text = decoder.control_names[one] if is_control else decoder.text(own)
        yield Piece(text, thought, is_control, trained=bool(trained[run[0]]), id=one if is_control else None)
