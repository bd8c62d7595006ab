"""What is read: raw documents of a corpus, and finished trajectories.

A row that is no document becomes a BadRow and its neighbours live; a file that cannot be read to its
end stops the reading, because nobody can say what the rest of it held.
"""

import glob
import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tpt_megatron.artifact import MANIFEST_SUFFIX, check_sizes, read_manifest
from tpt_megatron.config.schema import CorpusConfig
from tpt_megatron.errors import DamagedError, InputError
from tpt_megatron.records import TRAJECTORY_SCHEMA, BadRow, Document, Trajectory, text_id
from tpt_megatron.slots import resolve

READERS = {"auto": "tpt_megatron.data.source:read_corpus"}
COMPRESSION = {".jsonl": None, ".json.gz": "gzip", ".jsonl.gz": "gzip", ".jsonl.zst": "zstd"}
PARQUET = ".parquet"
READ_BYTES = 2**20
ROWS_PER_BATCH = 1024

Row = Document | BadRow


def open_corpus(config: CorpusConfig) -> Iterator[Row]:
    """The rows of the corpus, through the reader that the slot `corpus.reader` names."""
    reader = resolve(config.reader, READERS, "corpus.reader")
    return iter(reader(config))


def read_corpus(config: CorpusConfig) -> Iterator[Row]:
    """The rows of JSONL and Parquet files, in the order of `corpus.paths`; within a folder or glob by name.

    Stops after `corpus.max_documents` documents; bad rows are not counted.
    Raises InputError, before the first row, for a path that names nothing.
    """
    return _limited(chain.from_iterable(_rows(f, config) for f in corpus_files(config.paths)), config)


def _limited(rows: Iterator[Row], config: CorpusConfig) -> Iterator[Row]:
    left = config.max_documents
    for row in rows:
        yield row
        if left is not None and isinstance(row, Document):
            left -= 1
            if not left:
                return


def corpus_files(paths: Sequence[str]) -> list[Path]:
    """The files that `corpus.paths` names; raises InputError where one of the paths names nothing."""
    if not paths:
        raise InputError("corpus.paths is empty", expected="files, globs or folders", fix="set corpus.paths")
    files = [file for name in paths for file in _expand(name)]
    twice = (
        next((file for file in files if files.count(file) > 1), None)
        if len(set(files)) < len(files)
        else None
    )
    if twice is not None:
        raise InputError(f"corpus.paths names {twice} twice", fix="leave one of the overlapping paths out")
    return files


def _expand(name: str) -> list[Path]:
    found = (
        [Path(name)] if Path(name).exists() else [Path(p) for p in sorted(glob.glob(name, recursive=True))]
    )
    if not found:
        problem = "matches no file" if glob.has_magic(name) else "does not exist"
        raise InputError(f"corpus.paths: {name!r} {problem}", expected="files, globs or folders")
    files: list[Path] = []
    for path in found:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and _suffix(p) and p.name[0] != ".")
            if not inside:
                raise InputError(f"corpus.paths: nothing to read in the folder {path}", expected=_known())
            files += inside
        elif _suffix(path):
            files.append(path)
        else:
            raise InputError(f"corpus.paths: {path} has an unknown suffix", expected=_known())
    return files


def _suffix(path: Path) -> str | None:
    return next((s for s in (*COMPRESSION, PARQUET) if path.name.endswith(s)), None)


def _known() -> str:
    return ", ".join((*COMPRESSION, PARQUET))


def _rows(path: Path, config: CorpusConfig) -> Iterator[Row]:
    suffix = _suffix(path)
    assert suffix is not None
    try:
        if suffix == PARQUET:
            yield from _parquet_rows(path, config)
        else:
            yield from _json_rows(path, COMPRESSION[suffix], config)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"corpus.paths: {path} cannot be read to its end: {error}") from error


def _json_rows(path: Path, compression: str | None, config: CorpusConfig) -> Iterator[Row]:
    with _open_lines(path, compression) as lines:
        for number, line in enumerate(lines, start=1):
            if line.isspace():
                continue
            try:
                row = orjson.loads(line)  # refuses invalid UTF-8, lone surrogates and NaN
            except orjson.JSONDecodeError as error:
                yield BadRow(str(path), number, f"not JSON in UTF-8: {error}")
                continue
            yield _document(row, path, number, config)


def _open_lines(path: Path, compression: str | None) -> IO[bytes]:
    if compression is None:
        return open(path, "rb", buffering=READ_BYTES)
    if not path.stat().st_size:
        raise InputError(f"corpus.paths: {path} is an empty file, not even an empty {compression} stream")
    # Arrow's decompressor, because the zstandard package ends a truncated stream without a word.
    return io.BufferedReader(pa.input_stream(str(path), compression=compression), READ_BYTES)


def _parquet_rows(path: Path, config: CorpusConfig) -> Iterator[Row]:
    with pq.ParquetFile(path) as file:
        if config.text_key not in file.schema_arrow.names:
            raise InputError(
                f"corpus.text_key: {path} has no such column",
                got=config.text_key, expected=f"one of {', '.join(file.schema_arrow.names)}",
            )  # fmt: skip
        number = 0
        for batch in file.iter_batches(batch_size=ROWS_PER_BATCH):
            for index in range(batch.num_rows):
                number += 1
                try:
                    # Row by row: one bad byte makes to_pylist of the whole batch raise.
                    row = batch.slice(index, 1).to_pylist()[0]
                except UnicodeDecodeError as error:
                    yield BadRow(str(path), number, f"not UTF-8: {error}")
                    continue
                yield _document(row, path, number, config)


def _document(row: Any, path: Path, number: int, config: CorpusConfig) -> Row:
    """The document in `row`, or why it is none."""
    if not isinstance(row, dict):
        return BadRow(str(path), number, f"a JSON {type(row).__name__}, not an object")
    text = row.pop(config.text_key, None)
    if not isinstance(text, str):
        return BadRow(str(path), number, f"{config.text_key!r} holds no text but {type(text).__name__}")
    if not text:
        return BadRow(str(path), number, f"{config.text_key!r} is empty")
    identity = row.pop(config.id_key, None)
    if identity is None:
        identity = text_id(text)
    elif isinstance(identity, int) and not isinstance(identity, bool):
        identity = str(identity)
    elif not isinstance(identity, str) or not identity:
        return BadRow(str(path), number, f"{config.id_key!r} is no id: {identity!r:.80}")
    return Document(identity, text, config.source, _json_able(row))


def _json_able(row: Mapping[str, Any]) -> dict[str, Any]:
    """Parquet holds types that JSON lacks (dates, decimals, bytes): those become text."""
    meta: dict[str, Any] = orjson.loads(orjson.dumps(row, default=str))
    return meta


def read_trajectories(folder: Path) -> Iterator[Trajectory]:
    """The trajectories of a finished folder, file by file in the order of their names.

    Raises InputError where the folder is no finished set of trajectories, DamagedError where a file is
    not what the manifest promises.
    """
    path = folder / MANIFEST_SUFFIX
    manifest = read_manifest(path, kind="trajectories")
    check_sizes(path, manifest)
    counts = manifest.about.get("counts")
    if not isinstance(counts, Mapping) or "pending" not in counts:
        raise InputError(f"{path}: its facts hold no counts.pending", fix="write it again with `tpt think`")
    if counts["pending"]:
        raise InputError(
            f"{folder}: trajectories are still pending",
            got=counts["pending"], expected=0, fix="run the same `tpt think` again to finish them",
        )  # fmt: skip
    names = sorted(name for name in manifest.files if name.endswith(PARQUET))
    return chain.from_iterable(_trajectories(folder / name) for name in names)


def _trajectories(path: Path) -> Iterator[Trajectory]:
    columns = TRAJECTORY_SCHEMA.names
    try:
        with pq.ParquetFile(path) as file:
            if missing := [
                f.name for f in TRAJECTORY_SCHEMA if f not in list(file.schema_arrow.remove_metadata())
            ]:
                raise InputError(f"{path}: columns missing or of another type", got=", ".join(missing))
            for batch in file.iter_batches(batch_size=ROWS_PER_BATCH, columns=columns):
                if empty := [name for name in columns if batch.column(name).null_count]:
                    raise InputError(f"{path}: trajectories with no value in {', '.join(empty)}")
                for row in batch.to_pylist():
                    yield Trajectory(**row)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DamagedError(f"{path}: not the Parquet file that was written: {error}") from error
