"""A dataset's lineage, read twice in batches: first which values its fields have, then how long what is.

Memory is that of a batch and of the counts, whatever the number of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tpt_megatron.errors import DamagedError
from tpt_megatron.report.facts import has_column, open_parquet, read_batches
from tpt_megatron.report.lengths import GroupedLengths, Lengths
from tpt_megatron.report.metadata import FieldCounts, MetadataReader

LENGTHS = ("document_tokens", "thinking_tokens")
ROWS_PER_BATCH = 2**14  # of metadata: 16 MB where a row has 1 kB


@dataclass(frozen=True)
class Group:
    """The sequences that share a value of a field; None: those that lack the field, or the rest of many."""

    value: str | None
    document: Lengths
    thinking: Lengths  # 0 for a sequence without a thought
    capped: int  # thoughts that were cut at the limit of new tokens

    @property
    def sequences(self) -> int:
        return self.document.rows

    @property
    def thoughts(self) -> int:
        return self.thinking.rows - self.thinking.zeros

    @property
    def capped_share(self) -> float | None:
        """Of the thoughts; None where there is none."""
        return self.capped / self.thoughts if self.thoughts else None

    @property
    def expansion(self) -> float | None:
        """All tokens for each document token."""
        tokens = self.document.total
        return (tokens + self.thinking.total) / tokens if tokens else None


@dataclass(frozen=True)
class Field:
    """A field's groups, those of the longest thoughts first; with `others` and `without`, all sequences."""

    name: str
    groups: tuple[Group, ...]
    others: Group | None  # of the values that there is no room for
    without: Group | None  # rows that lack the field
    distinct: int | None  # different values; None: too many to count


@dataclass(frozen=True)
class Lineage:
    whole: Group
    pair: Lengths  # document and thought together
    fields: tuple[Field, ...]  # the source first
    fields_left_out: int


@dataclass(frozen=True)
class Row:
    """One sequence's own row."""

    id: str
    sample: int
    source: str
    finish_reason: str
    document_tokens: int
    thinking_tokens: int


@dataclass(frozen=True)
class _Columns:
    """Of a batch's rows, each [rows]."""

    document: NDArray[np.int64]
    thinking: NDArray[np.int64]
    capped: NDArray[np.bool_]

    @classmethod
    def of(cls, batch: pa.RecordBatch, path: Path) -> "_Columns":
        document, thinking = (batch.column(name).to_numpy().astype(np.int64) for name in LENGTHS)
        if min(document.min(initial=0), thinking.min(initial=0)) < 0:
            raise DamagedError(f"{path}: a negative number of tokens")
        capped = pc.equal(batch.column("finish_reason"), "length").to_numpy(zero_copy_only=False)
        return cls(document, thinking, capped & (thinking > 0))


class _Tally:
    """The groups of one field: the shown values, all other values, no value."""

    def __init__(self, shown: tuple[str, ...]) -> None:
        self._shown = shown
        self.other = len(shown)
        self.numbers: dict[str | None, int] = {value: number for number, value in enumerate(shown)}
        self.numbers[None] = len(shown) + 1
        self._document, self._thinking = GroupedLengths(), GroupedLengths()
        self._capped = np.zeros(len(shown) + 2, np.int64)

    def add(self, groups: NDArray[np.int64], lengths: _Columns) -> None:
        """`groups` [rows] are numbers."""
        self._document.add(groups, lengths.document)
        self._thinking.add(groups, lengths.thinking)
        self._capped += np.bincount(groups[lengths.capped], minlength=len(self._capped))

    def group(self, number: int, value: str | None = None) -> Group:
        document, thinking = self._document.of(number), self._thinking.of(number)
        return Group(value, document, thinking, int(self._capped[number]))

    def field(self, name: str, distinct: int | None) -> Field:
        groups = [self.group(number, value) for number, value in enumerate(self._shown)]
        groups.sort(key=lambda group: (-group.thinking.mean, -group.sequences, group.value))
        others, without = (self.group(number) for number in (self.other, self.numbers[None]))
        return Field(
            name, tuple(groups), others if others.sequences else None,
            without if without.sequences else None, distinct,
        )  # fmt: skip


def read_lineage(path: Path) -> Lineage:
    """What the lineage at `path` says. Raises DamagedError where it is not what packing wrote."""
    reader, counts = MetadataReader(path), FieldCounts()
    names = ["source", "meta"] if has_column(path, "meta") else ["source"]
    for batch in read_batches(path, names, ROWS_PER_BATCH):
        counts.add(reader.decode(batch))
    tallies = {name: _Tally(values.shown()) for name, values in counts.fields.items()}
    whole, pair = _Tally(("",)), GroupedLengths()
    for batch in read_batches(path, [*names, *LENGTHS, "finish_reason"], ROWS_PER_BATCH):
        columns = _Columns.of(batch, path)
        everyone = np.zeros(len(batch), np.int64)
        whole.add(everyone, columns)
        pair.add(everyone, columns.document + columns.thinking)
        decoded = reader.decode(batch)
        for name, tally in tallies.items():
            tally.add(decoded.numbers(name, tally.numbers, tally.other), columns)
    found = [tally.field(name, counts.fields[name].distinct) for name, tally in tallies.items()]
    return Lineage(whole.group(0), pair.of(0), tuple(found), len(counts.left_out))


def read_rows(path: Path, numbers: Sequence[int]) -> dict[int, Row]:
    """The rows of these numbers; row groups that hold none of them are not read."""
    found, first = dict[int, Row](), 0
    with open_parquet(path) as file:
        for group in range(file.num_row_groups):
            last = first + file.metadata.row_group(group).num_rows
            if any(first <= number < last for number in numbers):
                for batch in file.iter_batches(ROWS_PER_BATCH, [group], [part.name for part in fields(Row)]):
                    inside = [number for number in numbers if first <= number < first + len(batch)]
                    rows = batch.take(pa.array([number - first for number in inside], pa.int64())).to_pylist()
                    found |= {number: Row(**row) for number, row in zip(inside, rows, strict=True)}
                    first += len(batch)
            first = last
    return found
