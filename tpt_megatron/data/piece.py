"""A piece: what one worker makes of some tens of MB of text, in one file that is there whole or not at all.

Tokens first, as they come; then the columns of their sequences; then a JSON footer with the place and the
checksum of everything, its own length and checksum, and a magic number at the very end. Tokens have a
checksum per CHUNK_BYTES, so that any range of them can be read and proven alone.
"""

import io
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import xxhash

from tpt_megatron.artifact import atomic_file
from tpt_megatron.errors import DamagedError
from tpt_megatron.records import BadRow

CHUNK_BYTES = 2**20
TAIL = struct.Struct("<QQ8s")  # length and xxh3-64 of the footer, magic
MAGIC = b"TPTPIEC1"
LINEAGE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("sample", pa.int32()),
        ("source", pa.string()),
        ("document_tokens", pa.int32()),
        ("thinking_tokens", pa.int32()),
        ("finish_reason", pa.string()),
        ("meta", pa.string()),  # JSON of `data.lineage_keys`
    ]
)

Column = npt.NDArray[Any]


def piece_path(folder: Path, block: int, part: int) -> Path:
    return folder / f"block-{block:06d}-{part:04d}.piece"


class PieceWriter:
    """Appends batches to the file that `new_piece` opened; columns wait in memory, about 80 bytes a row."""

    def __init__(self, output: IO[bytes], dtype: np.dtype[Any], file: str) -> None:
        self._file, self._dtype = output, dtype
        self.file = file  # of the input, for the quarantine
        self._position, self._chunk, self._checksums = 0, xxhash.xxh3_64(), list[int]()
        self._columns: dict[str, list[Column]] = {}
        self._lineage: list[pa.RecordBatch] = []
        self._bad: list[bytes] = []
        self.counts: Counter[str] = Counter()  # of rows that did not become sequences, and of what was cut
        self.rows = 0  # of the input
        self.text_bytes = 0

    def add_tokens(self, ids: npt.NDArray[Any]) -> None:
        assert ids.dtype == self._dtype, ids.dtype
        view = memoryview(np.ascontiguousarray(ids)).cast("B")
        self._file.write(view)
        while len(view):
            room = CHUNK_BYTES - self._position % CHUNK_BYTES
            self._chunk.update(view[:room])
            self._position += min(room, len(view))
            view = view[room:]
            if self._position % CHUNK_BYTES == 0:
                self._close_chunk()

    def _close_chunk(self) -> None:
        self._checksums.append(self._chunk.intdigest())
        self._chunk.reset()

    def add_columns(self, columns: Mapping[str, Column], lineage: pa.RecordBatch) -> None:
        """Columns [sequences, ...] of the sequences whose tokens were added; the same names each time."""
        for name, values in columns.items():
            self._columns.setdefault(name, []).append(values)
        self._lineage.append(lineage)

    def add_bad(self, bad: Sequence[BadRow]) -> None:
        self._bad += [orjson.dumps(asdict(row)) + b"\n" for row in bad]

    def finish(self, last: bool) -> None:
        """Write columns and footer; `last`: no piece of this block follows."""
        if self._position % CHUNK_BYTES:
            self._close_chunk()
        sections = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        sections["chunks"] = np.array(self._checksums, np.uint64)
        sections["bad"] = np.frombuffer(b"".join(self._bad), np.uint8)
        sections["lineage"] = np.frombuffer(_ipc(self._lineage), np.uint8)
        places, position = {}, self._position
        for name, array in sections.items():
            raw = np.ascontiguousarray(array)
            self._file.write(raw.data)
            digest = xxhash.xxh3_64_intdigest(raw.data)
            places[name] = [position, raw.nbytes, raw.dtype.str, list(raw.shape), digest]
            position += raw.nbytes
        footer = orjson.dumps(
            {
                "token_bytes": self._position,
                "dtype": self._dtype.str,
                "sections": places,
                "rows": self.rows,
                "quarantined": len(self._bad),
                "text_bytes": self.text_bytes,
                "counts": dict(self.counts),
                "last": last,
                "file": self.file,
            }
        )
        self._file.write(footer + TAIL.pack(len(footer), xxhash.xxh3_64_intdigest(footer), MAGIC))


def _ipc(batches: Sequence[pa.RecordBatch]) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, LINEAGE_SCHEMA) as stream:
        for batch in batches:
            stream.write_batch(batch)
    return sink.getvalue()


@contextmanager
def new_piece(path: Path, dtype: np.dtype[Any], file: str) -> Iterator[PieceWriter]:
    """A piece to fill and `finish`; it gets its name when the block ends well."""
    with atomic_file(path) as output:
        yield PieceWriter(output, dtype, file)


class Piece:
    """A finished piece, opened for reading. Raises DamagedError for whatever its checksums refuse."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                size = file.seek(0, io.SEEK_END)
                if size < TAIL.size:
                    raise self._damaged("shorter than its tail")
                file.seek(size - TAIL.size)
                length, checksum, magic = TAIL.unpack(file.read())
                if magic != MAGIC or length > size - TAIL.size:
                    raise self._damaged("not the tail of a piece")
                file.seek(size - TAIL.size - length)
                footer = file.read(length)
        except FileNotFoundError:
            raise self._damaged("missing") from None
        if xxhash.xxh3_64_intdigest(footer) != checksum:
            raise self._damaged("its footer does not match its checksum")
        facts: dict[str, Any] = orjson.loads(footer)
        self.token_bytes, self.dtype = int(facts["token_bytes"]), np.dtype(facts["dtype"])
        self.rows, self.quarantined = int(facts["rows"]), int(facts["quarantined"])
        self.text_bytes, self.last = int(facts["text_bytes"]), bool(facts["last"])
        self.file = str(facts["file"])
        self.counts: Counter[str] = Counter(facts["counts"])
        self._sections: dict[str, list[Any]] = facts["sections"]
        lengths = self._sections.get("lengths")
        self.sequences = int(lengths[3][0]) if lengths else 0

    def _damaged(self, problem: str) -> DamagedError:
        return DamagedError(f"{self.path}: {problem}", fix="remove it and run the same `tpt pack` again")

    def has(self, name: str) -> bool:
        return name in self._sections

    def column(self, name: str) -> Column:
        """The column `name` of all sequences, its checksum verified."""
        start, size, dtype, shape, checksum = self._sections[name]
        raw = self._read(start, size)
        if xxhash.xxh3_64_intdigest(raw) != checksum:
            raise self._damaged(f"section {name} does not match its checksum")
        return np.frombuffer(raw, np.dtype(dtype)).reshape(shape)

    def bad_rows(self) -> bytes:
        """JSON lines of the rows that are in quarantine."""
        return self.column("bad").tobytes()

    def lineage(self) -> pa.Table:
        return pa.ipc.open_stream(pa.py_buffer(self.column("lineage").tobytes())).read_all()

    def tokens(self, runs: npt.NDArray[np.int64]) -> Iterator[memoryview]:
        """The bytes `start:stop` of the tokens for each of `runs` [n, 2], ascending, by chunks or less.

        Each chunk is read and verified once.
        """
        checksums, loaded, chunk_bytes = self.column("chunks"), -1, memoryview(b"")
        with open(self.path, "rb", buffering=0) as file:
            for start, stop in runs.tolist():
                for chunk in range(start // CHUNK_BYTES, -(-stop // CHUNK_BYTES)):
                    begin = chunk * CHUNK_BYTES
                    if chunk != loaded:
                        file.seek(begin)
                        chunk_bytes = memoryview(file.read(min(CHUNK_BYTES, self.token_bytes - begin)))
                        if xxhash.xxh3_64_intdigest(chunk_bytes) != int(checksums[chunk]):
                            raise self._damaged(f"chunk {chunk} of its tokens does not match its checksum")
                        loaded = chunk
                    yield chunk_bytes[max(start - begin, 0) : stop - begin]

    def _read(self, start: int, size: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(start)
            raw = file.read(size)
        if len(raw) != size:
            raise self._damaged("ends early")
        return raw


def read_pieces(folder: Path, block: int) -> list[Piece]:
    """The finished pieces of a block in order; a part missing in the middle ends the list."""
    found: list[Piece] = []
    while not (found and found[-1].last):
        path = piece_path(folder, block, len(found))
        if not path.exists():
            break
        found.append(Piece(path))
    return found
