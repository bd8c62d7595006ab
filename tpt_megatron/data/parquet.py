"""Rows of Parquet files, of the needed columns only."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tpt_megatron.data.chunks import MAX_BATCH_ROWS, Chunk, Outcome, Skip
from tpt_megatron.data.columns import Picker
from tpt_megatron.data.files import is_url, open_binary, readable
from tpt_megatron.data.rows import RowBatch
from tpt_megatron.data.where import BadCellError
from tpt_megatron.errors import InputError
from tpt_megatron.records import BadRow

DECODED_BYTES = 2**20  # aimed at per chunk
BUFFER_BYTES = 2**20  # of a column chunk, so that a row group of a GB is read page by page


@contextmanager
def open_parquet(url: str) -> Iterator[pq.ParquetFile]:
    """The file, its pages' checksums verified where it has any."""
    stream = open_binary(url)
    # A server is asked for whole column chunks at once; from a disk they come as they are needed.
    reading = {"pre_buffer": True} if is_url(url) else {"pre_buffer": False, "buffer_size": BUFFER_BYTES}
    try:
        with pq.ParquetFile(stream, page_checksum_verification=True, **reading) as file:
            yield file
    finally:
        stream.close()


def row_group_bytes(url: str) -> list[int]:
    """The bytes of each row group as stored. Raises InputError where the file is no Parquet."""
    with readable(url), open_parquet(url) as file:
        groups = (file.metadata.row_group(i) for i in range(file.num_row_groups))
        return [
            sum(group.column(i).total_compressed_size for i in range(group.num_columns)) for group in groups
        ]


def parquet_chunks(
    url: str, start: int, stop: int | None, max_row_bytes: int, picker: Picker, skip: Skip
) -> Iterator[Chunk]:
    """The rows of the row groups [start, stop).

    Raises InputError, naming the file and the column, where a column is missing or of another type, or the
    file cannot be read to its end.
    """
    with readable(url), open_parquet(url) as file:
        columns = _check_columns(url, file, picker)

        def chunk(rows: pa.RecordBatch, first: int) -> Chunk:
            return ParquetChunk(url, rows, first, max_row_bytes, picker)

        yield from group_chunks(file, start, stop, columns, skip, chunk)


def group_chunks(
    file: pq.ParquetFile,
    start: int,
    stop: int | None,
    columns: Sequence[str] | None,
    skip: Skip,
    chunk: Callable[[pa.RecordBatch, int], Chunk],
) -> Iterator[Chunk]:
    """The row groups [start, stop) in chunks; `chunk` gets the rows and the number, from 1, of the first."""
    first = 1 + sum(file.metadata.row_group(group).num_rows for group in range(start))
    for group in range(start, file.num_row_groups if stop is None else stop):
        facts = file.metadata.row_group(group)
        if not skip.take(facts.num_rows):
            number = first
            size = _rows_at_once(facts, columns)
            for rows in file.iter_batches(size, row_groups=[group], columns=columns, use_threads=False):
                yield chunk(rows, number)
                number += rows.num_rows
        first += facts.num_rows


def _rows_at_once(facts: Any, columns: Sequence[str] | None) -> int:
    """Rows with about DECODED_BYTES of the needed columns."""
    size = 0
    for index in range(facts.num_columns):
        column = facts.column(index)
        path = column.path_in_schema
        if columns is None or any(path == name or path.startswith(f"{name}.") for name in columns):
            size += column.total_uncompressed_size
    rows: int = DECODED_BYTES * facts.num_rows // max(size, 1)
    return max(1, min(MAX_BATCH_ROWS, rows))


def _check_columns(url: str, file: pq.ParquetFile, picker: Picker) -> list[str] | None:
    """The columns to read, of those that the picker knows; ids and sources may be missing."""
    paths = [file.schema.column(i).path for i in range(len(file.schema))]

    def has(name: str) -> bool:
        return any(path == name or path.startswith(f"{name}.") for path in paths)

    key = "corpus.messages_key" if picker.chat else "corpus.text_key"
    for setting, name in ((key, picker.content_key), *(("corpus.where", c) for c in picker.where.columns)):
        if not has(name):
            raise InputError(
                f"{setting}: {url} has no such column",
                got=name, expected=f"one of {', '.join(file.schema_arrow.names)}",
            )  # fmt: skip
    columns = None if picker.columns is None else [name for name in picker.columns if has(name)]
    _check_names(url, file.schema_arrow.names, columns, picker)
    kind = file.schema_arrow.field(picker.content_key).type
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_list_view)
    if not any(is_kind(plain) for is_kind in (lists if picker.chat else texts)):
        expected = "a list of {role, content}" if picker.chat else "string"
        raise InputError(f"{key}: {url}: column {picker.content_key!r}", got=str(kind), expected=expected)
    return columns


def _check_names(url: str, names: Sequence[str], columns: Sequence[str] | None, picker: Picker) -> None:
    """Refuse, of the file's top-level `names`, two of one name that is read, and keys that reach into one."""
    key = "corpus.messages_key" if picker.chat else "corpus.text_key"
    keys = {key: picker.content_key, "corpus.id_key": picker.id_key, "corpus.source_key": picker.source_key}
    for setting, name in keys.items():
        if name and name not in names and name.partition(".")[0] in names:
            raise InputError(
                f"{setting}: {url}: column {name!r} is nested", expected=f"one of {', '.join(names)}",
                fix="write the column to the top level of the file, or set corpus.reader",
            )  # fmt: skip
    wanted = names if columns is None else [n if n in names else n.partition(".")[0] for n in columns]
    counts = Counter(names)
    if twice := sorted({name for name in wanted if counts[name] > 1}):
        raise InputError(f"{url} has two columns of one name", got=", ".join(twice), fix="rename one of them")


class ParquetChunk:
    """Rows of one row group."""

    def __init__(
        self, url: str, rows: pa.RecordBatch, first: int, max_row_bytes: int, picker: Picker
    ) -> None:
        self._url, self._rows, self._first = url, rows, first
        self._max_row_bytes, self._picker = max_row_bytes, picker

    def __len__(self) -> int:
        count: int = self._rows.num_rows
        return count

    def split(self, rows: int) -> tuple["ParquetChunk", "ParquetChunk"]:
        return self._like(self._rows[:rows], self._first), self._like(self._rows[rows:], self._first + rows)

    def _like(self, rows: pa.RecordBatch, first: int) -> "ParquetChunk":
        return ParquetChunk(self._url, rows, first, self._max_row_bytes, self._picker)

    def add_to(self, batch: RowBatch) -> bool:
        if any(size > self._max_row_bytes for size in self._sizes()):
            return False
        try:
            cells = [column.to_pylist() for column in self._rows.columns]
        except UnicodeDecodeError:
            return False
        names = self._rows.schema.names
        rows = [dict(zip(names, row, strict=True)) for row in zip(*cells, strict=True)]
        return self._picker.many(rows, batch)

    @property
    def _content(self) -> pa.Array:
        return self._rows.column(self._picker.content_key)

    def _sizes(self) -> Sequence[int]:
        """The bytes of each row's content; nothing where all of them together are within the limit."""
        return value_bytes(self._content) if self._content.nbytes > self._max_row_bytes else ()

    def outcomes(self) -> Iterator[Outcome]:
        sizes = self._sizes() or [0] * len(self)
        for index, size in enumerate(sizes):
            number = self._first + index
            if size > self._max_row_bytes:
                reason = f"{self._picker.content_key!r} of {size} bytes, over corpus.max_row_bytes"
                yield BadRow(self._url, number, f"{reason}={self._max_row_bytes}")
                continue
            try:
                # Row by row: one bad byte makes to_pylist of the whole batch raise.
                yield self._picker.one(self._rows.slice(index, 1).to_pylist()[0])
            except UnicodeDecodeError as error:
                yield BadRow(self._url, number, f"not UTF-8: {error}")
            except BadCellError as error:
                yield BadRow(self._url, number, str(error))


def value_bytes(column: pa.Array) -> list[int]:
    """The bytes of each row's texts alone.

    `nbytes` of one row counts what string views and dictionaries share: beside one cell that is too long, all
    the others would be too.
    """
    kind = column.type
    binary = (pa.types.is_string, pa.types.is_large_string, pa.types.is_large_binary)
    if pa.types.is_string_view(kind):
        column, kind = column.cast(pa.large_binary()), pa.large_binary()  # binary_length takes no views
    if any(is_kind(kind) for is_kind in binary):
        lengths = pc.binary_length(column)
    elif pa.types.is_dictionary(kind):
        lengths = pa.array(value_bytes(column.dictionary), pa.int64()).take(column.indices)
    else:
        return [_nested_bytes(column.slice(index, 1)) for index in range(len(column))]
    sizes: list[int] = lengths.fill_null(0).to_pylist()
    return sizes


def _nested_bytes(values: pa.Array) -> int:
    kind = values.type
    if any(is_kind(kind) for is_kind in (pa.types.is_list, pa.types.is_large_list, pa.types.is_list_view)):
        return _nested_bytes(values.flatten())
    if pa.types.is_struct(kind):
        return sum(map(_nested_bytes, values.flatten()))
    if pa.types.is_dictionary(kind):
        return _nested_bytes(values.dictionary.take(values.indices))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return sum(value_bytes(values))
    size: int = values.nbytes
    return size
