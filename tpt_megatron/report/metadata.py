"""Metadata fields of a lineage: which there are, and which of their values a page has room for.

A field may hold another value in every row (a URL), so values are counted in bounded memory.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tpt_megatron.errors import DamagedError

SOURCE = "source"  # the name of the first field, which is a column of the lineage
MAX_FIELDS = 16
MAX_DEPTH = 4  # of nested metadata; its fields are named a.b.c
MAX_COUNTED = 2**14  # different values of a field that are counted at once
MAX_SHOWN, MOST_FREQUENT = 50, 20  # a field of more values than the first is shown as so many as the second
MAX_SEEN = 2**13  # different metadata whose decoding is kept
MAX_LETTERS = 100  # of a value; longer ones are told apart by so many


@dataclass
class ValueCounts:
    """Rows of each value of a field; of more than MAX_COUNTED values, the frequent ones (Misra and Gries,
    1982: a value in more than 2/MAX_COUNTED of the rows is never lost).
    """

    rows: Counter[str] = field(default_factory=Counter)
    lost: bool = False  # some rare values; the field has more than MAX_COUNTED

    def add(self, rows: Mapping[str, int]) -> None:
        for value, count in rows.items():
            self.rows[value] += count
        if len(self.rows) > MAX_COUNTED:
            self.lost = True
            floor = sorted(self.rows.values())[MAX_COUNTED // 2]
            self.rows = Counter({name: count - floor for name, count in self.rows.items() if count > floor})

    @property
    def distinct(self) -> int | None:
        """Different values; None: more than MAX_COUNTED."""
        return None if self.lost else len(self.rows)

    def shown(self) -> tuple[str, ...]:
        """All values in order, or the most frequent ones of many."""
        ranked = sorted(self.rows, key=lambda value: (-self.rows[value], value))
        return tuple(ranked if len(ranked) <= MAX_SHOWN and not self.lost else ranked[:MOST_FREQUENT])


class FieldCounts:
    """What a first pass over the lineage finds: fields in the order they come, and their values."""

    def __init__(self) -> None:
        self.fields: dict[str, ValueCounts] = {SOURCE: ValueCounts()}
        self.left_out: set[str] = set()  # fields beyond MAX_FIELDS

    def add(self, batch: "DecodedBatch") -> None:
        found: dict[str, dict[str, int]] = {
            SOURCE: dict(zip(batch.sources, batch.source_rows(), strict=True))
        }
        for values, rows in zip(batch.metas, batch.meta_rows(), strict=True):
            for name, value in values.items():
                table = found.setdefault(name, {})
                table[value] = table.get(value, 0) + rows
        for name, table in found.items():
            if name not in self.fields and len(self.fields) > MAX_FIELDS:
                self.left_out.update({name} if len(self.left_out) < MAX_COUNTED else ())
            else:
                self.fields.setdefault(name, ValueCounts()).add(table)


@dataclass(frozen=True)
class DecodedBatch:
    """Sources and metadata of a batch's rows; equal ones stand there once."""

    sources: list[str]
    source_of: NDArray[np.int64]  # [rows] which of `sources`
    metas: list[dict[str, str]]  # values by field
    meta_of: NDArray[np.int64]  # [rows] which of `metas`

    def source_rows(self) -> list[int]:
        return np.bincount(self.source_of, minlength=len(self.sources)).tolist()

    def meta_rows(self) -> list[int]:
        return np.bincount(self.meta_of, minlength=len(self.metas)).tolist()

    def numbers(self, name: str, known: Mapping[str | None, int], other: int) -> NDArray[np.int64]:
        """The number of each row's value of the field `name`, None for a row without it, [rows]."""
        if name == SOURCE:
            return np.array([known.get(source, other) for source in self.sources], np.int64)[self.source_of]
        numbers = [known.get(meta.get(name), other) for meta in self.metas]
        return np.array(numbers, np.int64)[self.meta_of]


class MetadataReader:
    """Decodes batches of one lineage. Metadata that was seen before is not decoded again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: dict[str, dict[str, str]] = {}

    def decode(self, batch: pa.RecordBatch) -> DecodedBatch:
        """Raises DamagedError for text that is not UTF-8, or metadata that is not a JSON object."""
        sources, source_of = _encoded(batch, "source", self._path)
        if "meta" not in batch.schema.names:
            return DecodedBatch(sources, source_of, [{}], np.zeros(len(batch), np.int64))
        texts, meta_of = _encoded(batch, "meta", self._path)
        metas = [self._seen.get(text) or _fields(text, self._path) for text in texts]
        if len(self._seen) < MAX_SEEN:
            self._seen.update(zip(texts, metas, strict=True))
        return DecodedBatch(sources, source_of, metas, meta_of)


def _encoded(batch: pa.RecordBatch, column: str, path: Path) -> tuple[list[str], NDArray[np.int64]]:
    """(different texts of a column, which of them each row has [rows])."""
    encoded = pc.dictionary_encode(batch.column(column))
    try:
        return encoded.dictionary.to_pylist(), np.asarray(encoded.indices, np.int64)
    except UnicodeDecodeError as error:
        raise DamagedError(f"{path}: text that is not UTF-8: {error}") from error


def _fields(text: str, path: Path) -> dict[str, str]:
    if not text:
        return {}
    try:
        body = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise DamagedError(f"{path}: metadata that is not JSON ({error})", got=repr(text[:80])) from error
    if not isinstance(body, dict):
        raise DamagedError(f"{path}: metadata", got=repr(text[:80]), expected="a JSON object")
    out: dict[str, str] = {}
    _gather(out, "", body, 1)
    if SOURCE in out:  # the lineage's own column has this name
        out[f"meta.{SOURCE}"] = out.pop(SOURCE)
    return out


def _gather(out: dict[str, str], prefix: str, body: Mapping[str, Any], depth: int) -> None:
    for key, value in body.items():
        name = f"{prefix}{key}"[:MAX_LETTERS]
        if isinstance(value, str):
            out[name] = value[:MAX_LETTERS]
        elif isinstance(value, dict) and depth < MAX_DEPTH:
            _gather(out, f"{name}.", value, depth + 1)
        elif value is not None:
            out[name] = _text(value)[:MAX_LETTERS]


def _text(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # nested deeper than 254 times
        return "(nested too deep)"
