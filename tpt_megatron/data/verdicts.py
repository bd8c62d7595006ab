"""Which sequences of all pieces go into the dataset: what can be said only when every row is known.

One byte a sequence in a mapped file, so memory is flat: duplicate ids, exact and near duplicates (the first
stays), then the random sample that fills `data.raw_tokens`.
"""

from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tpt_megatron.config.schema import DataConfig
from tpt_megatron.data.budget import EVERYTHING, keep_threshold, sample_keys
from tpt_megatron.data.near import find_near_duplicates
from tpt_megatron.data.partitions import find_duplicates
from tpt_megatron.data.piece import Piece

Ordinals = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]  # [rows, 2]
SAMPLE_SEED = 0


class Verdict(IntEnum):
    """Why a sequence is left out; the name in lower case is its key in the manifest's counts."""

    KEEP = 0
    DUPLICATE = 1
    DUPLICATE_ID = 2  # another text under an id that came before: goes to quarantine
    NEAR_DUPLICATE = 3
    NOT_SAMPLED = 4


class Verdicts:
    """The verdict on sequence `ordinal`, counted over all pieces in order."""

    def __init__(self, pieces: Sequence[Piece], folder: Path) -> None:
        self._pieces, self._folder = pieces, folder
        counts = [piece.sequences for piece in pieces]
        self.starts = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))  # [pieces + 1]
        total = int(self.starts[-1])
        # "w+" makes the file anew: what an interrupted assembly thought does not count.
        self._verdicts = np.memmap(folder / "verdicts", np.uint8, "w+", shape=(max(total, 1),))

    def of_piece(self, index: int) -> npt.NDArray[np.uint8]:
        return np.asarray(self._verdicts[self.starts[index] : self.starts[index + 1]])

    def kept(self, index: int) -> npt.NDArray[np.bool_]:
        """Which sequences of piece `index` stay, [sequences]."""
        kept: npt.NDArray[np.bool_] = self.of_piece(index) == Verdict.KEEP
        return kept

    def counts(self) -> dict[Verdict, int]:
        totals = np.zeros(len(Verdict), np.int64)
        for index in range(len(self._pieces)):
            totals += np.bincount(self.of_piece(index), minlength=len(Verdict))
        return {verdict: int(totals[verdict]) for verdict in Verdict}

    def decide(self, data: DataConfig) -> None:
        self._find_duplicates(data.exact_dedup)
        if data.filter.near_duplicates:
            for later, _ in find_near_duplicates(self._folder, self._signatures, data.filter):
                self._mark(later, Verdict.NEAR_DUPLICATE)
        if data.raw_tokens is not None:
            self._sample(data.raw_tokens)

    def _find_duplicates(self, exact: bool) -> None:
        """Mark equal documents where `exact`, and other documents under an id that came before."""
        if exact:
            self._mark_later(_text_keys, Verdict.DUPLICATE)
        if not self._mark_later(_id_keys, Verdict.DUPLICATE_ID):
            return
        # Rare, and dear: an id came twice. Only the same id and the same text together are a harmless
        # repetition, and a document must not go because its like is in quarantine.
        self._verdicts[:] = Verdict.KEEP
        self._mark_later(_id_keys, Verdict.DUPLICATE_ID)
        for later in self._later(_id_and_text_keys):
            self._verdicts[later] = Verdict.DUPLICATE if exact else Verdict.KEEP
        if exact:
            self._mark_later(_text_keys, Verdict.DUPLICATE)

    def _mark_later(self, keys: Callable[[Piece], Keys], verdict: Verdict) -> int:
        return sum(self._mark(later, verdict) for later in self._later(keys))

    def _later(self, keys: Callable[[Piece], Keys]) -> Iterator[Ordinals]:
        """The sequences whose key came before among those that stay."""

        def chunks() -> Iterator[Keys]:
            for index, piece in enumerate(self._pieces):
                if piece.sequences:
                    out = self.starts[index] + np.flatnonzero(~self.kept(index))
                    values = keys(piece).copy()
                    values[out - self.starts[index]] = np.stack([out, ~out], axis=1).astype(np.uint64)
                    yield values

        return (later for later, _ in find_duplicates(self._folder, chunks()))

    def _signatures(self) -> Iterator[npt.NDArray[np.uint32]]:
        return (piece.column("signature") for piece in self._pieces if piece.sequences)

    def _mark(self, ordinals: Ordinals, verdict: Verdict) -> int:
        """How many of them had stayed until now."""
        fresh = ordinals[self._verdicts[ordinals] == Verdict.KEEP]
        self._verdicts[fresh] = verdict
        return len(fresh)

    def _sample(self, budget: int) -> None:
        def chunks() -> Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]]:
            for index, piece in enumerate(self._pieces):
                if piece.sequences:
                    kept = self.kept(index)
                    yield sample_keys(piece.column("id_hash")[kept], SAMPLE_SEED), _raw_tokens(piece)[kept]

        threshold = keep_threshold(chunks, budget)
        if threshold == EVERYTHING:
            return
        for index, piece in enumerate(self._pieces):
            if piece.sequences:
                out = sample_keys(piece.column("id_hash"), SAMPLE_SEED) >= np.uint64(threshold)
                self._mark(self.starts[index] + np.flatnonzero(out), Verdict.NOT_SAMPLED)


def _text_keys(piece: Piece) -> Keys:
    return piece.column("text_hash")


def _id_keys(piece: Piece) -> Keys:
    return piece.column("id_hash")


def _id_and_text_keys(piece: Piece) -> Keys:
    """Both hashes in one key of 128 bits; the odd factor keeps equal hashes from cancelling."""
    return piece.column("id_hash") * np.uint64(0x9E3779B97F4A7C15) + piece.column("text_hash")


def _raw_tokens(piece: Piece) -> npt.NDArray[np.int64]:
    """Tokens of the document alone, [sequences]."""
    thought = piece.column("thinking_end") - piece.column("thinking_start")
    tokens: npt.NDArray[np.int64] = (piece.column("lengths") - thought).astype(np.int64)
    return tokens
