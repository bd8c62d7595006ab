"""The facts that manifests hold, taken out by path, and a Parquet column by column."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tpt_megatron.errors import DamagedError, InputError

ROWS_PER_BATCH = 2**16


def fact[T](about: Mapping[str, Any], key: str, kind: type[T], path: Path) -> T:
    """The value at `key` ("counts.out") of the facts of the manifest at `path`.

    Raises InputError where there is none of that kind.
    """
    value = _at(about, key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{path}: about.{key}", got=repr(value), expected=kind.__name__)
    return value


def optional_fact[T](about: Mapping[str, Any], key: str, kind: type[T], path: Path) -> T | None:
    """The same, or None where there is nothing at `key`: older manifests say less."""
    return None if _at(about, key) is None else fact(about, key, kind, path)


def _at(about: Mapping[str, Any], key: str) -> Any:
    value: Any = about
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


@contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file to read. Raises DamagedError for what cannot be read, then or later in the block."""
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        raise DamagedError(f"{path}: not the Parquet file that was written: {error}") from error
    except UnicodeDecodeError as error:
        raise DamagedError(f"{path}: text that is not UTF-8: {error}") from error


def has_column(path: Path, name: str) -> bool:
    with open_parquet(path) as file:
        return name in file.schema_arrow.names


def read_batches(path: Path, columns: Sequence[str], rows: int = ROWS_PER_BATCH) -> Iterator[pa.RecordBatch]:
    """`columns` of a Parquet file, `rows` rows at a time.

    Raises DamagedError for a file that is not one, lacks a column or has a row without a value in it.
    """
    with open_parquet(path) as file:
        if missing := [name for name in columns if name not in file.schema_arrow.names]:
            raise DamagedError(f"{path}: columns missing", got=", ".join(missing))
        for batch in file.iter_batches(batch_size=rows, columns=list(columns)):
            if empty := [name for name in columns if batch.column(name).null_count]:
                raise DamagedError(f"{path}: rows with no value in {', '.join(empty)}")
            yield batch
