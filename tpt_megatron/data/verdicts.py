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
ODD = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: multiples of it spread


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
        self._mark_later(_id_and_text_keys, Verdict.DUPLICATE)
        self._mark_later(_id_keys, Verdict.DUPLICATE_ID)
        if not exact:
            self._verdicts[self._verdicts == Verdict.DUPLICATE] = Verdict.KEEP
        else:
            self._mark_later(_text_keys, Verdict.DUPLICATE)

    def _mark_later(self, keys: Callable[[Piece], Keys], verdict: Verdict) -> int:
        return sum(self._mark(later, verdict) for later in self._later(keys))

    def _later(self, keys: Callable[[Piece], Keys]) -> Iterator[Ordinals]:
        """The sequences whose key came before among those that stay."""

        def chunks() -> Iterator[Keys]:
            for index, piece in enumerate(self._pieces):
                if piece.sequences:
                    values, out = keys(piece), np.flatnonzero(~self.kept(index))
                    values[out] = _unlike_any(self.starts[index] + out, 2)
                    yield values

        return (later for later, _ in find_duplicates(self._folder, chunks()))

    def _signatures(self) -> Iterator[npt.NDArray[np.uint32]]:
        """Those of rows that are out are like no other; those of two thoughts about one document differ."""
        for index, piece in enumerate(self._pieces):
            if piece.sequences:
                values, out = piece.column("signature").copy(), np.flatnonzero(~self.kept(index))
                values ^= _of_sample(piece).astype(np.uint32)
                values[out] = _unlike_any(self.starts[index] + out, values.shape[1])
                yield values

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
    return piece.column("text_hash") + _of_sample(piece)


def _id_keys(piece: Piece) -> Keys:
    return piece.column("id_hash") + _of_sample(piece)


def _id_and_text_keys(piece: Piece) -> Keys:
    """Both hashes in one key of 128 bits; the odd factor keeps equal hashes from cancelling."""
    return piece.column("id_hash") * ODD + _text_keys(piece)


def _of_sample(piece: Piece) -> Keys:
    """What tells the samples of one document apart, [sequences, 1]; 0 for the first."""
    return piece.column("sample").astype(np.uint64)[:, np.newaxis] * ODD


def _unlike_any(ordinals: Ordinals, width: int) -> Keys:
    """Values [ordinals, width] that no hash has, but by a chance of 2^-64."""
    steps = np.arange(1, width + 1, dtype=np.uint64)
    return (ordinals.astype(np.uint64)[:, np.newaxis] + np.uint64(1)) * ODD * steps ^ (steps << np.uint64(17))


def _raw_tokens(piece: Piece) -> npt.NDArray[np.int64]:
    """Tokens of the document alone, [sequences]."""
    thought = piece.column("thinking_end") - piece.column("thinking_start")
    tokens: npt.NDArray[np.int64] = (piece.column("lengths") - thought).astype(np.int64)
    return tokens
