"""From pieces to a dataset: what stays is laid out in order, written once, synced and published.

Everything is streamed piece by piece, so memory does not grow with the dataset.
"""

import fcntl
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tpt_megatron.artifact import BLOCK_BYTES, Digester, FileDigest, digest_file
from tpt_megatron.config.schema import DataConfig
from tpt_megatron.data.executor import run_tasks
from tpt_megatron.data.layout import HEADER, PARTS_DTYPE
from tpt_megatron.data.piece import LINEAGE_SCHEMA, Piece
from tpt_megatron.data.plan import write_plan
from tpt_megatron.data.publish import publish, write_index
from tpt_megatron.data.quarantine import numbered
from tpt_megatron.data.regions import RegionWriter, kept_ranges, plan_regions
from tpt_megatron.data.verdicts import Verdict, Verdicts
from tpt_megatron.errors import InputError
from tpt_megatron.records import BadRow

LINEAGE_ROWS = 2**16  # of one row group

NOTED = {"thought_cut_at_budget", "thought_cut_to_window", "longer_than_window"}  # of ComposedBatch.counts
COUNTED = ("sequences", "tokens", "document_tokens", "thinking_tokens")
Lengths = npt.NDArray[np.int32]


@dataclass
class Tally:
    """What went in and where it went: rows = sequences + quarantined + everything in `left_out`."""

    rows: int = 0
    quarantined: int = 0
    text_bytes: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # by reason
    noted: Counter[str] = field(default_factory=Counter)  # sequences that are in, but cut or long
    by_source: dict[str, Counter[str]] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)  # of best_fit

    def total(self, name: str) -> int:
        return sum(counts[name] for counts in self.by_source.values())

    def counts(self) -> dict[str, Any]:
        """What the manifest says; `from_counts` reads it back."""
        totals = {name: self.total(name) for name in COUNTED}
        assert self.rows == totals["sequences"] + self.quarantined + self.left_out.total(), self
        return {
            **totals,
            "in": self.rows,
            "quarantined": self.quarantined,
            "left_out": dict(+self.left_out),
            "noted": dict(self.noted),
            "text_bytes": self.text_bytes,
            "plan": self.plan,
            "by_source": {source: dict(counts) for source, counts in self.by_source.items()},
        }

    @classmethod
    def from_counts(cls, counts: Mapping[str, Any]) -> "Tally":
        return cls(
            rows=counts["in"],
            quarantined=counts["quarantined"],
            text_bytes=counts["text_bytes"],
            left_out=Counter(counts["left_out"]),
            noted=Counter(counts["noted"]),
            by_source={source: Counter(own) for source, own in counts["by_source"].items()},
            plan=dict(counts["plan"]),
        )


class Assembly:
    """Lays the pieces out in `folder`, under the names of the dataset's suffixes."""

    def __init__(self, pieces: Sequence[Piece], folder: Path, data: DataConfig, dtype: np.dtype[Any]) -> None:
        self._pieces, self._folder, self._data, self._dtype = pieces, folder, data, dtype
        self._verdicts = Verdicts(pieces, folder)
        self.digests: dict[str, FileDigest] = {}
        self.tally = Tally()

    def path(self, suffix: str) -> Path:
        return self._folder / f"out.{suffix}"

    def lay_out(self) -> None:
        """Write every file of the dataset but its manifest."""
        self._verdicts.decide(self._data)
        self._count_rows()
        sequences = sum(int(self._verdicts.kept(i).sum()) for i in range(len(self._pieces)))
        if not sequences:
            return
        self._write_parts_and_lineage()
        with self._stream("idx") as write:
            write_index(write, self._lengths, sequences, self._dtype)
        self._write_tokens()
        if self._pieces and any(piece.has("trained") for piece in self._pieces):
            self._write_mask()
        if self._data.packing == "best_fit":
            index = np.memmap(self.path("idx"), np.uint8, "r")
            lengths = index[HEADER.size :][: 4 * sequences].view("<i4")
            self.tally.plan = asdict(write_plan(lengths, self._data.sequence_length, self.path("plan")))
            self._sync("plan")

    def _count_rows(self) -> None:
        tally = self.tally
        for piece in self._pieces:
            tally.rows += piece.rows
            tally.quarantined += piece.quarantined
            tally.text_bytes += piece.text_bytes
            for name, count in piece.counts.items():
                (tally.noted if name in NOTED else tally.left_out)[name] += count
        for verdict, count in self._verdicts.counts().items():
            if verdict is Verdict.DUPLICATE_ID:
                tally.quarantined += count
            elif verdict is not Verdict.KEEP:
                tally.left_out[verdict.name.lower()] += count
        if tally.quarantined:
            with self._stream("quarantine.jsonl") as write:
                for row in numbered(chain.from_iterable(map(self._bad_rows, range(len(self._pieces))))):
                    write(orjson.dumps(row) + b"\n")

    def _bad_rows(self, index: int) -> Iterator[dict[str, Any]]:
        """Those that the piece holds, and its sequences whose id came before."""
        yield from map(orjson.loads, self._pieces[index].bad_rows().splitlines())
        out = np.flatnonzero(self._verdicts.of_piece(index) == Verdict.DUPLICATE_ID)
        for row in self._pieces[index].lineage().take(out).to_pylist() if len(out) else ():
            reason = f"document {row['id']!r}: another text came before under this id"
            yield asdict(BadRow(self._pieces[index].file, 0, reason))

    def _kept(self) -> Iterator[tuple[Piece, npt.NDArray[np.bool_]]]:
        for index, piece in enumerate(self._pieces):
            kept = self._verdicts.kept(index)
            if kept.any():
                yield piece, kept

    def _lengths(self) -> Iterator[Lengths]:
        return (piece.column("lengths")[kept] for piece, kept in self._kept())

    def _write_parts_and_lineage(self) -> None:
        sources: dict[str, int] = {}
        with self._stream("parts") as write, self._lineage() as add_lineage:
            for piece, kept in self._kept():
                lineage = piece.lineage().filter(pa.array(kept))
                parts = np.empty(len(lineage), PARTS_DTYPE)
                for name in ("thinking_start", "thinking_end"):
                    parts[name] = piece.column(name)[kept]
                parts["source"] = self._count_sources(sources, lineage)
                write(parts.tobytes())
                add_lineage(lineage)
        self._sync("lineage.parquet")

    def _count_sources(self, sources: dict[str, int], lineage: pa.Table) -> npt.NDArray[np.int32]:
        """The number of each row's source, [rows]; new sources are numbered as they come."""
        encoded = pc.dictionary_encode(lineage["source"]).combine_chunks()
        local = encoded.indices.to_numpy()
        document, thinking = (
            np.bincount(local, lineage[name].to_numpy(), len(encoded.dictionary)).astype(np.int64).tolist()
            for name in ("document_tokens", "thinking_tokens")
        )
        rows = np.bincount(local).tolist()
        numbers = []
        for index, source in enumerate(encoded.dictionary.to_pylist()):
            numbers.append(sources.setdefault(source, len(sources)))
            self.tally.by_source.setdefault(source, Counter()).update(
                sequences=rows[index],
                tokens=document[index] + thinking[index],
                document_tokens=document[index],
                thinking_tokens=thinking[index],
            )
        places: npt.NDArray[np.int32] = np.array(numbers, np.int32)[local]
        return places

    @contextmanager
    def _lineage(self) -> Iterator[Callable[[pa.Table], None]]:
        """Row groups of LINEAGE_ROWS, wherever the pieces end."""
        schema = LINEAGE_SCHEMA if self._data.lineage_keys else LINEAGE_SCHEMA.remove(len(LINEAGE_SCHEMA) - 1)
        waiting = schema.empty_table()
        path = self.path("lineage.parquet")
        with open(path, "wb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:

            def add(table: pa.Table) -> None:
                nonlocal waiting
                waiting = pa.concat_tables([waiting, table.select(schema.names)])
                while len(waiting) >= LINEAGE_ROWS:
                    writer.write_table(waiting.slice(0, LINEAGE_ROWS))
                    waiting = waiting.slice(LINEAGE_ROWS)

            yield add
            writer.write_table(waiting)

    def _write_tokens(self) -> None:
        path, itemsize = self.path("bin"), self._dtype.itemsize
        size = sum(int(lengths.sum(dtype=np.int64)) for lengths in self._lengths()) * itemsize
        with open(path, "wb") as file:
            file.truncate(size)
        ranges = (
            kept_ranges(piece.column("lengths"), self._verdicts.kept(index), itemsize)
            if piece.sequences else np.empty((0, 2), np.int64)
            for index, piece in enumerate(self._pieces)
        )  # fmt: skip
        regions = plan_regions(ranges, BLOCK_BYTES)
        workers = max(1, min(self._data.workers, size // BLOCK_BYTES))
        make = partial(RegionWriter, path, [piece.path for piece in self._pieces], BLOCK_BYTES)
        digests = dict(run_tasks(make, regions, workers, "local"))
        self.digests["bin"] = FileDigest(size, tuple(digests[index] for index in range(len(digests))))

    def _write_mask(self) -> None:
        """A bit per token, least significant first; pieces do not end at bytes."""
        waiting = np.empty(0, np.uint8)
        with self._stream("mask") as write:
            for piece, kept in self._kept():
                trained = piece.column("trained")[np.repeat(kept, piece.column("lengths"))]
                waiting = np.concatenate((waiting, trained.astype(np.uint8)))
                whole = len(waiting) // 8 * 8
                write(np.packbits(waiting[:whole], bitorder="little").tobytes())
                waiting = waiting[whole:]
            write(np.packbits(waiting, bitorder="little").tobytes())

    @contextmanager
    def _stream(self, suffix: str) -> Iterator[Callable[[bytes], None]]:
        """A file that is synced and has its checksum when the block ends."""
        digester = Digester(BLOCK_BYTES)
        with open(self.path(suffix), "wb") as file:

            def write(data: bytes) -> None:
                file.write(data)
                digester.update(data)

            yield write
            file.flush()
            os.fsync(file.fileno())
        self.digests[suffix] = digester.digest()

    def _sync(self, suffix: str) -> None:
        with open(self.path(suffix), "rb") as file:
            os.fsync(file.fileno())
        self.digests[suffix] = digest_file(self.path(suffix), BLOCK_BYTES)

    def publish(self, prefix: Path, about: Mapping[str, Any]) -> None:
        publish(
            prefix, {suffix: self.path(suffix) for suffix in self.digests}, self.digests, about, BLOCK_BYTES
        )


@contextmanager
def sole_packer(folder: Path) -> Iterator[None]:
    """One process at a time packs into `folder`, shards apart; the lock goes with its process."""
    with open(folder / "lock", "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{folder}: another process is packing this dataset", fix="wait for it, or stop it"
            ) from None
        yield
