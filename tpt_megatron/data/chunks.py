"""Chunks: rows that lie together, on their way from a file to batches; how batches are bounded."""

from collections.abc import Iterable, Iterator
from typing import Protocol, Self

from tpt_megatron.data.columns import Taken
from tpt_megatron.data.rows import RowBatch
from tpt_megatron.records import BadRow

MAX_BATCH_ROWS = 2**14

Outcome = Taken | BadRow | None  # a good row, a bad one, one that `corpus.where` leaves out


class Chunk(Protocol):
    """Rows that lie together in a file."""

    def __len__(self) -> int:
        """The number of rows."""
        ...

    def split(self, rows: int) -> tuple[Self, Self]:
        """The first `rows` rows, and the others."""
        ...

    def add_to(self, batch: RowBatch) -> bool:
        """Add all rows at once; False, and nothing added, where they have to be taken one by one."""
        ...

    def outcomes(self) -> Iterator[Outcome]:
        """What became of each row, in order."""
        ...


class Skip:
    """Rows still to be passed over; a source may pass over whole row groups itself."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def take(self, rows: int) -> bool:
        """Whether all of the next `rows` rows are to be passed over; if so they are."""
        if rows > self.rows:
            return False
        self.rows -= rows
        return True


class OneRow:
    """A chunk of one row, known before it was parsed."""

    def __init__(self, row: Taken | BadRow, present: bool = True) -> None:
        self._row, self._present = row, present

    def __len__(self) -> int:
        return int(self._present)

    def split(self, rows: int) -> tuple["OneRow", "OneRow"]:
        return OneRow(self._row, rows > 0 and self._present), OneRow(self._row, rows == 0 and self._present)

    def add_to(self, batch: RowBatch) -> bool:
        return False

    def outcomes(self) -> Iterator[Outcome]:
        if self._present:
            yield self._row


def batches(
    chunks: Iterable[Chunk], empty: RowBatch, skip: Skip, max_documents: int | None, batch_characters: int
) -> Iterator[RowBatch]:
    """The rows of `chunks` in batches like `empty`, up to the `max_documents`-th good one.

    A batch ends once it has `batch_characters` characters, so it holds at most one chunk's more (256 KiB of
    lines, or one row), and never more than MAX_BATCH_ROWS rows.
    """
    batch, characters = empty.select(()), 0
    left = max_documents
    source = iter(chunks)
    rest: Chunk | None = None
    while (left is None or left > 0) and (chunk := rest or next(source, None)) is not None:
        rest = None
        if skip.rows:
            skipped, chunk = chunk.split(min(skip.rows, len(chunk)))
            skip.rows -= len(skipped)
            if left is not None:  # a good row counts, skipped or not
                before = empty.select(())
                _add(skipped, before)
                left -= len(before)
                if left <= 0:
                    break
        if len(chunk) > MAX_BATCH_ROWS - batch.rows:
            chunk, rest = chunk.split(MAX_BATCH_ROWS - batch.rows)
        good = len(batch)
        _add(chunk, batch, left)
        if left is not None:
            left -= len(batch) - good
        characters += _characters(batch, good)
        if characters >= batch_characters or batch.rows >= MAX_BATCH_ROWS:
            yield batch
            batch, characters = empty.select(()), 0
    if batch.rows:
        yield batch


def _add(chunk: Chunk, batch: RowBatch, most: int | None = None) -> None:
    """Add the rows of `chunk`, up to the `most`-th good one: so the last one that is read is that."""
    if (most is None or len(chunk) <= most) and chunk.add_to(batch):
        return
    full = None if most is None else len(batch) + most
    for outcome in chunk.outcomes():
        if outcome is None:
            batch.left_out += 1
        elif isinstance(outcome, BadRow):
            batch.bad.append(outcome)
        else:
            add_row(outcome, batch)
            if len(batch) == full:
                return


def add_row(row: Taken, batch: RowBatch) -> None:
    batch.ids.append(row.document.id)
    batch.texts.append(row.document.text)
    batch.sources.append(row.document.source)
    batch.metas.append(row.document.meta)
    if batch.messages is not None:
        assert row.messages is not None
        batch.messages.append(row.messages)


def _characters(batch: RowBatch, start: int) -> int:
    """Of the rows from `start` on."""
    count = sum(map(len, batch.texts[start:]))
    if batch.thoughts is not None:
        count += sum(map(len, batch.thoughts[start:]))
    if batch.messages is not None:
        count += sum(len(turn["content"]) for turns in batch.messages[start:] for turn in turns)
    return count
