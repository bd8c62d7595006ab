"""Blocks: the pieces of the input that workers take, cut the same way on every machine; and their rows."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal

from tpt_megatron.config.schema import CorpusConfig
from tpt_megatron.data.chunks import Chunk, OneRow, Skip, batches
from tpt_megatron.data.columns import NO_META, Picker, Taken
from tpt_megatron.data.files import InputFile, format_of, input_files
from tpt_megatron.data.jsonl import json_chunks
from tpt_megatron.data.parquet import parquet_chunks, row_group_bytes
from tpt_megatron.data.rows import RowBatch
from tpt_megatron.data.trajectories import (
    holds_trajectories,
    named_inputs,
    trajectory_chunks,
    trajectory_files,
)
from tpt_megatron.errors import ConfigError, InputError
from tpt_megatron.records import BadRow, Document
from tpt_megatron.slots import resolve

READERS = {"auto": "tpt_megatron.data.source:read_corpus"}
BLOCK_BYTES = 64 * 2**20
BATCH_CHARACTERS = 4 * 2**20
MAX_SPANS = 4096  # of one block
TO_THE_END = -1
# Bytes of rows in a stored byte, about: zstd and gzip make a quarter of text, Parquet of text a third.
EXPANSION = {"jsonl": 1, "stream": 4, "parquet": 3, "trajectories": 3}

Kind = Literal["jsonl", "stream", "parquet", "trajectories", "reader"]


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a file: of JSON lines those that begin in the bytes [start, stop), of Parquet row groups."""

    url: str
    start: int = 0
    stop: int = TO_THE_END


@dataclass(frozen=True, slots=True)
class Block:
    """Spans that one worker reads in this order."""

    index: int
    kind: Kind  # "stream": files that are read whole, from the first to the last
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All blocks, in the order of the input, and the files as they were when it was made."""

    blocks: tuple[Block, ...]
    files: tuple[InputFile, ...]


def plan_blocks(
    inputs: Sequence[str],
    corpus: CorpusConfig,
    style: str,
    block_bytes: int = BLOCK_BYTES,
    exclude: Path | None = None,
) -> Plan:
    """Cut `inputs` (folders of trajectories or corpora), or `corpus.paths` without any, into blocks.

    A function of the files' names and sizes and of the arguments alone. Blocks have about `block_bytes` of
    rows; a compressed file, a row group and a corpus with `corpus.max_documents` are never cut.
    `exclude` is the prefix of the dataset to be written: its files in a folder of the inputs are no input.
    Raises ConfigError where the style or a setting does not take the input, InputError where it names
    nothing or is unfinished, DamagedError where an artifact is.
    """
    inputs = named_inputs(inputs, exclude)
    corpora = [name for name in inputs if not holds_trajectories(name)]
    _check_style(inputs, corpora, style)
    _check_rows(inputs, corpora, corpus)
    groups: list[tuple[Kind, tuple[Span, ...]]] = []
    files: list[InputFile] = []
    if corpus.reader != "auto" and (corpora or not inputs):
        check_reader(corpus)
        names = corpora or corpus.paths
        groups.append(("reader", tuple(Span(name) for name in names)))
        corpora = []
    elif not inputs:
        files += input_files(corpus.paths, "corpus.paths", exclude)
    elif corpora:
        files += input_files(corpora, "data.inputs", exclude)
    if files:
        whole = corpus.max_documents is not None
        one: list[tuple[Kind, tuple[Span, ...]]] = [("stream", tuple(Span(file.url) for file in files))]
        groups += one if whole else _group(files, block_bytes)
    folders = [name for name in inputs if holds_trajectories(name)]
    # Every folder is checked before the first is read; trajectories stand behind corpora.
    written = [file for name in folders for file in trajectory_files(Path(name))]
    _check_once(written)
    groups += _group(written, block_bytes, "trajectories")
    blocks = tuple(Block(index, kind, spans) for index, (kind, spans) in enumerate(groups))
    return Plan(blocks, (*files, *written))


def _check_style(inputs: Sequence[str], corpora: Sequence[str], style: str) -> None:
    documents = style in ("none", "chat")
    if not inputs and not documents:
        raise ConfigError(
            "data.inputs is empty", expected=f"folders of trajectories for data.style={style}",
            fix="set data.inputs, or data.style=none to pack the corpus alone",
        )  # fmt: skip
    if corpora and not documents:
        raise ConfigError(
            f"data.inputs: data.style={style} needs thoughts, and {corpora[0]} holds none",
            expected="folders that `tpt think` has finished", fix="or set data.style=none",
        )  # fmt: skip
    if style == "chat" and len(corpora) < len(inputs):
        raise ConfigError(
            "data.inputs: data.style=chat takes conversations, not trajectories",
            fix="name a corpus with messages, or set data.style=think_tags",
        )


def _check_rows(inputs: Sequence[str], corpora: Sequence[str], corpus: CorpusConfig) -> None:
    """Trajectories are taken whole; `tpt think` has chosen the rows."""
    if not inputs or corpora:
        return
    for key in ("where", "max_documents"):
        if value := getattr(corpus, key):
            raise ConfigError(
                f"corpus.{key} does not choose among trajectories, which data.inputs names",
                got=value, fix=f"unset corpus.{key} here and set it for `tpt think`",
            )  # fmt: skip


def check_reader(corpus: CorpusConfig) -> None:
    """Raises ConfigError where corpus.reader names no reader, or one that passes over `corpus.where`."""
    resolve(corpus.reader, READERS, "corpus.reader")
    if corpus.where and corpus.reader not in (*READERS, *READERS.values()):
        raise ConfigError(
            "corpus.where has no effect on a corpus.reader of one's own",
            got=corpus.reader, fix="unset corpus.where and let the reader choose its rows",
        )  # fmt: skip


def _check_once(files: Iterable[InputFile]) -> None:
    seen: set[str] = set()
    for file in files:
        identity = str(Path(file.url).resolve())
        if identity in seen:
            raise InputError(f"data.inputs names {file.url} twice", fix="leave one of them out")
        seen.add(identity)


def _group(
    files: Iterable[InputFile], block_bytes: int, kind: Kind | None = None
) -> list[tuple[Kind, tuple[Span, ...]]]:
    """Neighbours of one kind together up to `block_bytes`, what is larger cut where it can be."""
    groups: list[tuple[Kind, tuple[Span, ...]]] = []
    spans: list[Span] = []
    last, filled = None, 0
    for file in files:
        now = kind or _kind(file.url)
        for span, size in _cut(file, now, block_bytes):
            weight = size * EXPANSION[now] if size >= 0 else block_bytes
            if spans and (now != last or filled + weight > block_bytes or len(spans) == MAX_SPANS):
                assert last is not None
                groups.append((last, tuple(spans)))
                spans, filled = [], 0
            spans.append(span)
            last, filled = now, filled + weight
    if spans:
        assert last is not None
        groups.append((last, tuple(spans)))
    return groups


def _kind(url: str) -> Kind:
    kinds: dict[str | None, Kind] = {"jsonl": "jsonl", "parquet": "parquet"}
    return kinds.get(format_of(url), "stream")


def _cut(file: InputFile, kind: Kind, block_bytes: int) -> Iterator[tuple[Span, int]]:
    """Spans of the file of at most `block_bytes` of rows, and the bytes that each has in the file."""
    if file.size_bytes * EXPANSION[kind] <= block_bytes or kind == "stream":
        if file.size_bytes or kind != "jsonl":
            yield Span(file.url, 0, file.size_bytes if kind == "jsonl" else TO_THE_END), file.size_bytes
    elif kind == "jsonl":
        count = -(-file.size_bytes // block_bytes)
        bounds = [file.size_bytes * i // count for i in range(count + 1)]
        for start, stop in pairwise(bounds):
            yield Span(file.url, start, stop), stop - start
    else:
        start, filled = 0, 0
        sizes = row_group_bytes(file.url)
        for index, size in enumerate(sizes):
            if index > start and (filled + size) * EXPANSION[kind] > block_bytes:
                yield Span(file.url, start, index), filled
                start, filled = index, 0
            filled += size
        yield Span(file.url, start, len(sizes)), filled


def read_block(
    block: Block,
    corpus: CorpusConfig,
    style: str,
    *,
    metadata: bool | Sequence[str],
    skip_rows: int = 0,
    batch_characters: int = BATCH_CHARACTERS,
) -> Iterator[RowBatch]:
    """The rows of `block` after the first `skip_rows` (as RowBatch.rows counts), in the order of the input.

    `metadata` names the top-level columns that RowBatch.metas keeps, or is True for all. Without any, every
    row's is one shared empty mapping; of Parquet only the columns that are named are read. Bad rows in a
    range that begins inside a file have line 0 and their byte offset.
    Raises InputError, naming the file, where one cannot be read to its end; DamagedError for trajectories.
    """
    skip = Skip(skip_rows)
    if block.kind == "trajectories":
        empty = RowBatch(thoughts=[], samples=[], finish_reasons=[])
        chunks = chain.from_iterable(
            trajectory_chunks(span.url, span.start, _stop(span), bool(metadata), skip) for span in block.spans
        )
        return batches(chunks, empty, skip, None, batch_characters)
    empty = RowBatch(messages=[]) if style == "chat" else RowBatch()
    # With a limit, skipped rows have to be looked at: the good ones count.
    passed = skip if corpus.max_documents is None else Skip(0)
    rows = corpus_chunks(block, corpus, style, metadata=metadata, skip=passed)
    return batches(rows, empty, skip, corpus.max_documents, batch_characters)


def corpus_chunks(
    block: Block, corpus: CorpusConfig, style: str, *, metadata: bool | Sequence[str], skip: Skip
) -> Iterator[Chunk]:
    """The rows of a block of documents, as they lie in its files."""
    if block.kind == "reader":
        if style == "chat":
            raise ConfigError("corpus.reader: a reader of one's own gives documents, not conversations")
        paths = tuple(span.url for span in block.spans)
        yield from _reader_chunks(corpus.model_copy(update={"paths": paths}), bool(metadata))
        return
    lines = Picker(corpus, style, metadata=metadata)
    tables = Picker(corpus, style, metadata=metadata, json_able=False)
    for span in block.spans:
        if format_of(span.url) == "parquet":
            yield from parquet_chunks(span.url, span.start, _stop(span), corpus.max_row_bytes, tables, skip)
        else:
            yield from json_chunks(span.url, span.start, _stop(span), corpus.max_row_bytes, lines)


def _stop(span: Span) -> int | None:
    return None if span.stop == TO_THE_END else span.stop


def _reader_chunks(corpus: CorpusConfig, metadata: bool) -> Iterator[Chunk]:
    rows = iter(resolve(corpus.reader, READERS, "corpus.reader")(corpus))
    for number, row in enumerate(rows, start=1):
        yield OneRow(_checked(row, number, corpus, metadata))


def _checked(row: Any, number: int, corpus: CorpusConfig, metadata: bool) -> Taken | BadRow:
    """What a reader of one's own gave, if it is a document."""
    reader = corpus.reader
    if isinstance(row, BadRow):
        return row
    if not isinstance(row, Document):
        return BadRow(reader, number, f"a {type(row).__name__}, not a Document")
    for name, value in (("text", row.text), ("id", row.id), ("source", row.source)):
        if not isinstance(value, str) or (not value and name != "source"):
            return BadRow(reader, number, f"the document's {name} is {value!r:.80}")
        try:
            size = len(value.encode())
            if size > corpus.max_row_bytes:
                limit = f"over corpus.max_row_bytes={corpus.max_row_bytes}"
                return BadRow(reader, number, f"the document's {name} of {size} bytes, {limit}")
        except UnicodeEncodeError as error:  # a lone surrogate
            return BadRow(reader, number, f"the document's {name} is no Unicode: {error}")
    return Taken(row if metadata else Document(row.id, row.text, row.source, NO_META), None)
