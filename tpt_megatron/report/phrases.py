"""How thoughts and documents begin: the most frequent first words of a random sample."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from tpt_megatron.data.indexed import IndexedDataset, Integers
from tpt_megatron.errors import DamagedError
from tpt_megatron.report.decoding import Decoder

WORDS = (3, 4, 5)  # of an opening
MOST_FREQUENT = 10
OPENING_TOKENS = 48  # are read: five words, tags and line breaks of any tokenizer, mostly
MAX_LETTERS = 80  # of an opening, for scripts that put no spaces between words


@dataclass(frozen=True)
class Opening:
    """`rows` of the sampled texts begin with `words`."""

    words: str
    rows: int


@dataclass(frozen=True)
class Openings:
    """`frequent[n]`: openings of n words that at least two texts share, the most frequent first."""

    texts: int  # looked at
    frequent: dict[int, tuple[Opening, ...]]


def read_openings(dataset: IndexedDataset, decoder: Decoder, numbers: list[int]) -> tuple[Openings, Openings]:
    """Of the documents and of the thoughts of sequences `numbers`."""
    documents, thoughts = _Counts(), _Counts()
    for number in numbers:
        first, length = dataset.offsets[number], int(dataset.lengths[number])
        start, end = thought_of(dataset, number)
        # The document stands before the thought or, but for a begin token, behind it.
        before = decoder.read(dataset, first, min(start, OPENING_TOKENS))
        behind = decoder.read(dataset, first + end, min(length - end, OPENING_TOKENS))
        whole = length - (end - start) <= OPENING_TOKENS
        documents.add(decoder, np.concatenate((before, behind))[:OPENING_TOKENS], whole)
        if end > start:
            count = min(end - start, OPENING_TOKENS)
            thoughts.add(decoder, decoder.read(dataset, first + start, count), count == end - start)
    return documents.openings(), thoughts.openings()


def thought_of(dataset: IndexedDataset, number: int) -> tuple[int, int]:
    """(start, end) of the thought in sequence `number`; DamagedError where it lies outside."""
    part = dataset.parts[number]
    start, end, length = int(part["thinking_start"]), int(part["thinking_end"]), int(dataset.lengths[number])
    if not 0 <= start <= end <= length:
        raise DamagedError(
            f"{dataset.prefix}: the thought of sequence {number}", got=f"{start} to {end} of {length} tokens"
        )
    return start, end


class _Counts:
    def __init__(self) -> None:
        self._texts = 0
        self._rows = {count: Counter[str]() for count in WORDS}

    def add(self, decoder: Decoder, ids: Integers, whole: bool) -> None:
        """A text's first tokens; `whole`: there are no more of them."""
        words = decoder.text(ids[~decoder.is_control(ids)]).split()
        if not whole:
            words = words[:-1]  # the last one may go on
        self._texts += 1
        for count, rows in self._rows.items():
            if len(words) >= count:
                rows[" ".join(words[:count])[:MAX_LETTERS]] += 1

    def openings(self) -> Openings:
        def frequent(rows: Counter[str]) -> tuple[Opening, ...]:
            ranked = sorted(rows.items(), key=lambda item: (-item[1], item[0]))
            return tuple(Opening(words, n) for words, n in ranked[:MOST_FREQUENT] if n > 1)

        return Openings(self._texts, {count: frequent(rows) for count, rows in self._rows.items()})
