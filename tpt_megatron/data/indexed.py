"""Token files as megatron.core reads them (`.bin`, `.idx`), with `.parts` beside them.

`.idx` (facts: megatron-core 0.19.2): a 34-byte header, then without padding int32 lengths [sequences],
int64 byte pointers [sequences], int64 document indices [sequences + 1]; each sequence is one document.
All numbers are little-endian. Without its manifest, written last, it is not a dataset.
"""

import os
import struct
import weakref
from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, overload

import numpy as np
import numpy.typing as npt

from tpt_megatron.artifact import (
    BLOCK_BYTES,
    MANIFEST_SUFFIX,
    Digester,
    FileDigest,
    Manifest,
    check_sizes,
    digest_file,
    fsync_folder,
    read_manifest,
    temporary_beside,
    write_manifest,
)
from tpt_megatron.errors import DamagedError, InputError

HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, documents + 1
MAGIC, VERSION = b"MMIDIDX\x00\x00", 1
DTYPE_CODES: Mapping[int, str] = {4: "<i4", 8: "<u2"}
PARTS_DTYPE = np.dtype([("thinking_start", "<i4"), ("thinking_end", "<i4"), ("source", "<i4")])
CORE = ("bin", "parts", "idx")
EXTRAS = ("lineage.parquet", "quarantine.jsonl")  # what else may stand under a dataset's name
WRITE_BYTES = 2**20
SEQUENCES_PER_WRITE = 2**20  # bounds the memory of writing the index, 28 bytes a sequence

Integers = npt.NDArray[np.integer[Any]]


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 below 65,500 ids, else int32: megatron.core's own rule."""
    return np.dtype("<u2" if vocab_size < 65500 else "<i4")


def dataset_file(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(f"{prefix.name}.{suffix}")


class IndexedWriter:
    """Streams sequences to temporary files, which `finish` turns into a dataset.

    A context manager: left without `finish`, it removes what it wrote. A dataset that already has this
    name stays readable until `finish`, which takes its manifest away before the first new file comes.
    """

    def __init__(self, prefix: Path, vocab_size: int, block_bytes: int = BLOCK_BYTES) -> None:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self.prefix, self.vocab_size, self.block_bytes = prefix, vocab_size, block_bytes
        self.dtype = token_dtype(vocab_size)
        self.num_tokens = 0
        self._lengths = array("i")
        self._digests = {"bin": Digester(block_bytes), "parts": Digester(block_bytes)}
        self._open_files = ExitStack()
        self._files = {suffix: self._create(suffix) for suffix in self._digests}

    @property
    def num_sequences(self) -> int:
        return len(self._lengths)

    def temporary(self, suffix: str) -> Path:
        """Where `PREFIX.suffix` is written before it gets its name; extras of `finish` are put here."""
        return temporary_beside(dataset_file(self.prefix, suffix))

    def _create(self, suffix: str) -> IO[bytes]:
        return self._open_files.enter_context(open(self.temporary(suffix), "wb", buffering=WRITE_BYTES))

    def add(
        self, ids: Sequence[int] | Integers, thinking_start: int, thinking_end: int, source_index: int
    ) -> None:
        """Append one sequence; its tokens `thinking_start:thinking_end` are the thought.

        Raises InputError for an empty sequence or an id outside the vocabulary.
        """
        tokens = np.asarray(ids)
        where = f"{self.prefix}: sequence {self.num_sequences}"
        if not tokens.size:
            raise InputError(f"{where} is empty", expected="one token or more")
        assert tokens.ndim == 1
        assert tokens.dtype.kind in "iu", tokens.dtype
        assert 0 <= thinking_start <= thinking_end <= len(tokens)
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.vocab_size:
            raise InputError(
                f"{where} holds an id outside the vocabulary",
                got=low if low < 0 else high, expected=f"0 to {self.vocab_size - 1}",
            )  # fmt: skip
        part = np.array((thinking_start, thinking_end, source_index), dtype=PARTS_DTYPE)
        self._write("bin", tokens.astype(self.dtype).tobytes())
        self._write("parts", part.tobytes())
        self._lengths.append(len(tokens))
        self.num_tokens += len(tokens)

    def _write(self, suffix: str, data: bytes) -> None:
        self._files[suffix].write(data)
        self._digests[suffix].update(data)

    def finish(self, about: Mapping[str, Any], extras: Sequence[str] = ()) -> Manifest:
        """Give the dataset its name and its manifest.

        `extras` are suffixes out of EXTRAS whose files the caller has written at `temporary(suffix)`;
        they become part of the artifact.
        """
        assert set(extras) <= set(EXTRAS), extras
        self._digests["idx"] = Digester(self.block_bytes)
        self._files["idx"] = self._create("idx")
        self._write_index()
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self._open_files.close()
        digests = {suffix: digester.digest() for suffix, digester in self._digests.items()}
        digests |= {suffix: _sync_and_digest(self.temporary(suffix), self.block_bytes) for suffix in extras}
        self._publish(tuple(digests))
        files = {dataset_file(self.prefix, suffix).name: digest for suffix, digest in digests.items()}
        manifest = Manifest("dataset", files, about, self.block_bytes)
        write_manifest(dataset_file(self.prefix, MANIFEST_SUFFIX), manifest)
        return manifest

    def _write_index(self) -> None:
        lengths = np.frombuffer(self._lengths, dtype=np.int32)
        code = next(code for code, name in DTYPE_CODES.items() if np.dtype(name) == self.dtype)
        self._write("idx", HEADER.pack(MAGIC, VERSION, code, len(lengths), len(lengths) + 1))
        self._write("idx", lengths.astype("<i4").tobytes())
        pointer = 0
        for start in range(0, len(lengths), SEQUENCES_PER_WRITE):
            sizes = lengths[start : start + SEQUENCES_PER_WRITE].astype("<i8") * self.dtype.itemsize
            self._write("idx", (np.cumsum(sizes) - sizes + pointer).astype("<i8").tobytes())
            pointer += int(sizes.sum())
        for start in range(0, len(lengths) + 1, SEQUENCES_PER_WRITE):
            stop = min(start + SEQUENCES_PER_WRITE, len(lengths) + 1)
            self._write("idx", np.arange(start, stop, dtype="<i8").tobytes())

    def _publish(self, suffixes: Sequence[str]) -> None:
        """Rename; no crash in between leaves a file of one dataset under the manifest of another."""
        folder = self.prefix.parent
        dataset_file(self.prefix, MANIFEST_SUFFIX).unlink(missing_ok=True)
        fsync_folder(folder)  # the old manifest is gone for good before the first new file is there
        for suffix in suffixes:
            os.replace(self.temporary(suffix), dataset_file(self.prefix, suffix))
        for suffix in set(EXTRAS) - set(suffixes):
            dataset_file(self.prefix, suffix).unlink(missing_ok=True)  # of the dataset that was here before
        fsync_folder(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open_files.close()
        for suffix in (*CORE, *EXTRAS):
            self.temporary(suffix).unlink(missing_ok=True)


def _sync_and_digest(path: Path, block_bytes: int) -> FileDigest:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return digest_file(path, block_bytes)


class Offsets:
    """The first token of each sequence, read from the mapped index: an int, or int64 [n] of a slice."""

    def __init__(self, pointers: npt.NDArray[np.int64], itemsize: int) -> None:
        self._pointers, self._itemsize = pointers, itemsize

    def __len__(self) -> int:
        return len(self._pointers)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> npt.NDArray[np.int64]: ...
    def __getitem__(self, index: int | slice) -> int | npt.NDArray[np.int64]:
        if isinstance(index, slice):
            return self._pointers[index].astype(np.int64) // self._itemsize
        return int(self._pointers[index]) // self._itemsize


class IndexedDataset:
    """A dataset opened for reading; opening costs the same whatever its size."""

    def __init__(self, prefix: Path) -> None:
        """Raises InputError where `prefix` has no manifest, DamagedError where sizes do not agree."""
        self.prefix = prefix
        manifest_path = dataset_file(prefix, MANIFEST_SUFFIX)
        self.manifest = read_manifest(manifest_path, kind="dataset")
        missing = [s for s in CORE if dataset_file(prefix, s).name not in self.manifest.files]
        if missing:
            raise DamagedError(f"{manifest_path}: names no {' and no '.join(missing)}", fix="was it renamed?")
        check_sizes(manifest_path, self.manifest)
        self.dtype, count = _read_header(dataset_file(prefix, "idx"))
        self.num_sequences = count
        index = np.memmap(dataset_file(prefix, "idx"), dtype=np.uint8, mode="r")
        lengths = index[HEADER.size :][: 4 * count].view("<i4")
        pointers = index[HEADER.size + 4 * count :][: 8 * count].view("<i8")
        self._lengths = np.asarray(lengths)  # [sequences]
        self.offsets = Offsets(np.asarray(pointers), self.dtype.itemsize)
        self.parts = np.asarray(_map_parts(dataset_file(prefix, "parts"), count))  # [sequences]
        self.num_tokens = self.offsets[count - 1] + int(self._lengths[-1]) if count else 0
        path = dataset_file(prefix, "bin")
        if (size := path.stat().st_size) != self.num_tokens * self.dtype.itemsize:
            expected = f"{self.num_tokens} tokens of {self.dtype.itemsize} bytes, as its index says"
            raise DamagedError(f"{path}: wrong size", got=f"{size} bytes", expected=expected)
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, start_token: int, count: int) -> Integers:
        """Tokens `start_token` to `start_token + count` of the whole stream, [count], read-only.

        By pread: a cold mapped read fetches 11 times the useful bytes (facts-data, 2b).
        """
        if count < 0 or not 0 <= start_token <= self.num_tokens - count:
            raise IndexError(f"{self.prefix}: tokens {start_token}+{count} of {self.num_tokens}")
        offset, left = start_token * self.dtype.itemsize, count * self.dtype.itemsize
        pieces: list[bytes] = []
        while left:
            piece = os.pread(self._descriptor, left, offset)
            if not piece:
                raise DamagedError(f"{dataset_file(self.prefix, 'bin')}: ends early", got=f"{offset} bytes")
            pieces.append(piece)
            offset, left = offset + len(piece), left - len(piece)
        return np.frombuffer(b"".join(pieces), dtype=self.dtype)

    def sequence(self, index: int) -> Integers:
        """The tokens of one sequence."""
        if not 0 <= index < self.num_sequences:
            raise IndexError(f"{self.prefix}: sequence {index} of {self.num_sequences}")
        return self.read(self.offsets[index], int(self._lengths[index]))


def _read_header(path: Path) -> tuple[np.dtype[Any], int]:
    """The token type and the number of sequences that an index names; its size must agree."""
    with open(path, "rb") as file:
        raw = file.read(HEADER.size)
    if len(raw) < HEADER.size:
        raise DamagedError(f"{path}: shorter than its header", got=f"{len(raw)} bytes")
    magic, version, code, count, documents = HEADER.unpack(raw)
    if (magic, version) != (MAGIC, VERSION) or code not in DTYPE_CODES or documents != count + 1:
        got = f"{magic!r}, version {version}, dtype {code}, {count} sequences, {documents} document marks"
        raise DamagedError(f"{path}: not the header of a dataset of ours", got=got)
    expected = HEADER.size + 20 * count + 8
    if (size := path.stat().st_size) != expected:
        raise DamagedError(f"{path}: wrong size for {count} sequences", got=size, expected=expected)
    return np.dtype(DTYPE_CODES[code]), count


def _map_parts(path: Path, count: int) -> npt.NDArray[Any]:
    if (size := path.stat().st_size) != count * PARTS_DTYPE.itemsize:
        raise DamagedError(f"{path}: wrong size for {count} sequences", got=size)
    return np.memmap(path, dtype=PARTS_DTYPE, mode="r") if count else np.empty(0, PARTS_DTYPE)
