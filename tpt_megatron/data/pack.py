"""`tpt pack`: trajectories or raw documents become an indexed dataset.

Memory is that of one batch of documents, their token counts and nothing else.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tpt_megatron.config.schema import CorpusConfig, DataConfig
from tpt_megatron.data.compose import Recipe, build_recipe, compose
from tpt_megatron.data.source import open_corpus, read_trajectories
from tpt_megatron.data.writer import IndexedWriter
from tpt_megatron.errors import ConfigError, InputError
from tpt_megatron.records import BadRow, Document, Trajectory, stable_hash
from tpt_megatron.tokenizer import TextTokenizer

CHARACTERS_PER_BATCH = 2**20  # about 20 MB of ids in Python lists
LINEAGE_ROWS = 2**16  # of one row group
LINEAGE, QUARANTINE = "lineage.parquet", "quarantine.jsonl"
LINEAGE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("sample", pa.int32()),
        ("source", pa.string()),
        ("document_tokens", pa.int32()),
        ("thinking_tokens", pa.int32()),
        ("finish_reason", pa.string()),
    ]
)

Row = Document | Trajectory | BadRow


@dataclass(frozen=True)
class PackSummary:
    """What `pack` did. tokens = document_tokens + thinking_tokens."""

    sequences: int
    tokens: int
    document_tokens: int  # the text with begin and end of document
    thinking_tokens: int  # all that TPT adds: tags, line breaks and thoughts
    quarantined: int
    seconds: float
    megabytes: float  # of UTF-8 text and thoughts, packed (10^6 bytes)
    prefix: str


@dataclass
class Tally:
    """Counts that grow while packing; by_source is keyed by the name of the source."""

    rows: int = 0  # read, good and bad
    quarantined: int = 0
    text_bytes: int = 0
    first_bad: BadRow | None = None
    by_source: dict[str, Counter[str]] = field(default_factory=dict)

    def total(self, name: str) -> int:
        return sum(counts[name] for counts in self.by_source.values())


def pack(data: DataConfig, corpus: CorpusConfig, report: Callable[[int], None]) -> PackSummary:
    """Compose, tokenize and index `data.inputs` (or `corpus`, style "none" only) as `data.output`.

    `report` gets the number of rows done since its last call. Rows that are no documents go to
    OUTPUT.quarantine.jsonl. Raises ConfigError naming the key, InputError where no document is left.
    """
    started = time.monotonic()
    prefix = _prefix(data)
    if not data.tokenizer:
        raise ConfigError("data.tokenizer is empty", expected="a folder with tokenizer.json, or a hub name")
    tokenizer = TextTokenizer(data.tokenizer)
    recipe = build_recipe(data, tokenizer)
    rows = _open_inputs(data, corpus)
    with IndexedWriter(prefix, tokenizer.vocab_size) as writer, _Packer(writer, recipe, tokenizer) as packer:
        for batch in _batches(rows):
            packer.add(batch)
            report(len(batch))
        extras = packer.close()
        tally = packer.tally
        if not writer.num_sequences:
            bad = f"; the first bad row: {tally.first_bad}" if tally.first_bad else ""
            raise InputError(f"no document to pack, {tally.quarantined} bad rows{bad}")
        writer.finish(_about(data, recipe, tokenizer, tally), extras)
    return PackSummary(
        sequences=tally.total("sequences"),
        tokens=tally.total("tokens"),
        document_tokens=tally.total("document_tokens"),
        thinking_tokens=tally.total("thinking_tokens"),
        quarantined=tally.quarantined,
        seconds=time.monotonic() - started,
        megabytes=tally.text_bytes / 1e6,
        prefix=str(prefix),
    )


def _prefix(data: DataConfig) -> Path:
    if not data.output or data.output.endswith("/") or Path(data.output).is_dir():
        raise ConfigError(
            "data.output must be a prefix, not a folder",
            got=repr(data.output), expected="FOLDER/NAME, which becomes NAME.bin, NAME.idx, ...",
        )  # fmt: skip
    return Path(data.output)


def _open_inputs(data: DataConfig, corpus: CorpusConfig) -> Iterator[Row]:
    if data.inputs:
        # A list, so that every folder is checked before the first is read.
        return chain.from_iterable([read_trajectories(Path(folder)) for folder in data.inputs])
    if data.style != "none":
        raise ConfigError(
            "data.inputs is empty", expected=f"folders of trajectories for data.style={data.style}",
            fix="set data.inputs, or data.style=none to pack the corpus alone",
        )  # fmt: skip
    return open_corpus(corpus)


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    characters = 0
    for row in rows:
        batch.append(row)
        # 200: a bad row or a record of an empty text costs memory too.
        characters += 200 + (0 if isinstance(row, BadRow) else len(row.text))
        characters += len(row.thinking) if isinstance(row, Trajectory) else 0
        if characters >= CHARACTERS_PER_BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _Packer:
    """Takes batches of rows to the writer, and keeps the lineage, the quarantine and the tally."""

    def __init__(self, writer: IndexedWriter, recipe: Recipe, tokenizer: TextTokenizer) -> None:
        self._writer, self._recipe, self._tokenizer = writer, recipe, tokenizer
        self._control = frozenset(identity for identity in recipe.control.values() if identity is not None)
        self._lineage: list[dict[str, Any]] = []
        lineage = pq.ParquetWriter(writer.temporary(LINEAGE), LINEAGE_SCHEMA, compression="zstd")
        self._open_files = stack = ExitStack()
        self._lineage_file = stack.enter_context(lineage)
        self._quarantine_file = stack.enter_context(writer.temporary(QUARANTINE).open("wb"))
        self._source_index: dict[str, int] = {}
        self.tally = Tally()

    def add(self, batch: Sequence[Row]) -> None:
        self.tally.rows += len(batch)
        good = [row for row in batch if not isinstance(row, BadRow)]
        thoughts = [self._thought(row) for row in good]
        ids = self._tokenizer.encode_plain([*(row.text for row in good), *thoughts])
        text_ids, thinking_ids = iter(ids[: len(good)]), iter(ids[len(good) :])
        for row in batch:
            if isinstance(row, BadRow):
                self._set_aside(row)
            else:
                self._add_row(row, next(text_ids), next(thinking_ids))

    def _thought(self, row: Document | Trajectory) -> str:
        return row.thinking if isinstance(row, Trajectory) and self._recipe.style != "none" else ""

    def _add_row(self, row: Document | Trajectory, text_ids: list[int], thinking_ids: list[int]) -> None:
        if not self._control.isdisjoint(text_ids) or not self._control.isdisjoint(thinking_ids):
            # A tokenizer that breaks TextTokenizer's promise: the row must not end or open anything.
            self._set_aside(BadRow(row.source, 0, f"document {row.id!r} encodes to a control token"))
            return
        composed = compose(self._recipe, text_ids, thinking_ids)
        source = self._source_index.setdefault(row.source, len(self._source_index))
        self._writer.add(composed.ids, composed.thinking_start, composed.thinking_end, source)
        tokens, thinking = len(composed.ids), composed.thinking_end - composed.thinking_start
        counts = self.tally.by_source.setdefault(row.source, Counter())
        counts.update(sequences=1, tokens=tokens, document_tokens=tokens - thinking, thinking_tokens=thinking)
        self.tally.text_bytes += len(row.text.encode()) + len(self._thought(row).encode())
        trajectory = row if isinstance(row, Trajectory) else None
        self._lineage.append(
            {
                "id": row.id,
                "sample": trajectory.sample if trajectory else 0,
                "source": row.source,
                "document_tokens": tokens - thinking,
                "thinking_tokens": thinking,
                "finish_reason": trajectory.finish_reason if trajectory else "",
            }
        )
        if len(self._lineage) >= LINEAGE_ROWS:
            self._write_lineage()

    def _set_aside(self, row: BadRow) -> None:
        self.tally.quarantined += 1
        self.tally.first_bad = self.tally.first_bad or row
        self._quarantine_file.write(orjson.dumps(asdict(row)) + b"\n")

    def _write_lineage(self) -> None:
        self._lineage_file.write_table(pa.Table.from_pylist(self._lineage, LINEAGE_SCHEMA))
        self._lineage = []

    def close(self) -> tuple[str, ...]:
        """Finish the files beside the dataset; the suffixes of those that belong to it."""
        self._write_lineage()
        self._open_files.close()
        return (LINEAGE, QUARANTINE) if self.tally.quarantined else (LINEAGE,)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open_files.close()


def _about(data: DataConfig, recipe: Recipe, tokenizer: TextTokenizer, tally: Tally) -> dict[str, Any]:
    """The facts of the manifest; rows in = sequences + quarantined."""
    names = ("sequences", "tokens", "document_tokens", "thinking_tokens")
    totals = {name: tally.total(name) for name in names}
    assert tally.rows == totals["sequences"] + tally.quarantined
    return {
        "tokenizer": {
            "name": tokenizer.name,
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
        },
        "style": data.style,
        "control": recipe.control,
        "sources": list(tally.by_source),  # the index is `source` of the parts
        "counts": {
            **totals,
            "in": tally.rows,
            "quarantined": tally.quarantined,
            "by_source": {source: dict(counts) for source, counts in tally.by_source.items()},
        },
        "config_hash": stable_hash(data.model_dump(mode="json")),
    }
