"""A dataset opened for reading: token files as megatron.core reads them, with `.parts` beside them."""

import os
import weakref
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from tpt_megatron.artifact import MANIFEST_SUFFIX, check_sizes, read_manifest
from tpt_megatron.data.layout import (
    CORE,
    DTYPE_CODES,
    HEADER,
    MAGIC,
    PARTS_DTYPE,
    VERSION,
    dataset_file,
)
from tpt_megatron.errors import DamagedError

Integers = npt.NDArray[np.integer[Any]]


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
