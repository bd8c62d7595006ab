"""A dataset opened for reading: token files as megatron.core reads them, with `.parts` beside them."""

import os
import weakref
from bisect import bisect_right
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
from tpt_megatron.data.mapping import map_for_random_reads
from tpt_megatron.errors import DamagedError

Integers = npt.NDArray[np.integer[Any]]
Indices = npt.NDArray[np.int64]


class Offsets:
    """The first token of each sequence, read from the mapped index.

    An int gives an int, a slice int64 [n], an array of sequence numbers int64 of its shape.
    """

    def __init__(self, index: npt.NDArray[np.uint8], start: int, count: int, itemsize: int) -> None:
        """`index` is the mapped file, in which `count` byte pointers begin at byte `start`."""
        raw = index[start : start + 8 * count]
        self._pointers: Indices = raw.view("<i8")
        # For the bisection: np.searchsorted would first copy what stands unaligned in its file, 1.6 GB for
        # 200 million sequences, and bisecting by numpy's indexing takes 5 us a place, this 1.
        self._numbers = memoryview(raw).cast("q")
        self._itemsize = itemsize

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice | Indices) -> Indices: ...
    def __getitem__(self, index: int | slice | Indices) -> int | Indices:
        if isinstance(index, int):
            return self._numbers[index] // self._itemsize
        return self._pointers[index].astype(np.int64) // self._itemsize

    def find(self, token: int, low: int = 0, high: int | None = None) -> int:
        """The sequence that `token` is in: the last of `low` to `high` that starts at or before it."""
        return bisect_right(self._numbers, token * self._itemsize, low, high) - 1


class IndexedDataset:
    """A dataset opened for reading; opening costs the same whatever its size."""

    def __init__(self, prefix: Path) -> None:
        """Raises InputError where `prefix` has no manifest, DamagedError where sizes do not agree."""
        self.prefix = prefix
        manifest_path = dataset_file(prefix, MANIFEST_SUFFIX)
        self.manifest = read_manifest(manifest_path, kind="dataset")
        missing = [s for s in CORE if not self.has(s)]
        if missing:
            raise DamagedError(f"{manifest_path}: names no {' and no '.join(missing)}", fix="was it renamed?")
        check_sizes(manifest_path, self.manifest)
        self.dtype, count = _read_header(dataset_file(prefix, "idx"))
        self.num_sequences = count
        index = map_for_random_reads(dataset_file(prefix, "idx"))
        self.lengths: npt.NDArray[np.int32] = index[HEADER.size :][: 4 * count].view("<i4")
        self.offsets = Offsets(index, HEADER.size + 4 * count, count, self.dtype.itemsize)
        self.parts = _map_parts(dataset_file(prefix, "parts"), count)  # [sequences]
        self.num_tokens = self.offsets[count - 1] + int(self.lengths[-1]) if count else 0
        self._check_size("bin", self.num_tokens * self.dtype.itemsize, f"of {self.dtype.itemsize} bytes")
        self._tokens_file = self._open("bin")
        self._mask_file: int | None = None
        if self.has("mask"):
            self._check_size("mask", -(-self.num_tokens // 8), "of a bit")
            self._mask_file = self._open("mask")

    def has(self, suffix: str) -> bool:
        """Whether PREFIX.suffix is part of the dataset."""
        return dataset_file(self.prefix, suffix).name in self.manifest.files

    def _check_size(self, suffix: str, expected: int, unit: str) -> None:
        path = dataset_file(self.prefix, suffix)
        if (size := path.stat().st_size) != expected:
            wanted = f"{self.num_tokens} tokens {unit}, as its index says"
            raise DamagedError(f"{path}: wrong size", got=f"{size} bytes", expected=wanted)

    def _open(self, suffix: str) -> int:
        descriptor = os.open(dataset_file(self.prefix, suffix), os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        return descriptor

    def read_into(self, start_token: int, out: Integers) -> None:
        """Fill `out` [count], of the dataset's own type, with the tokens from `start_token` on.

        By pread: a cold mapped read fetches 11 times the useful bytes (facts-data, 2b).
        """
        assert out.dtype == self.dtype
        if not 0 <= start_token <= self.num_tokens - len(out):
            raise IndexError(f"{self.prefix}: tokens {start_token}+{len(out)} of {self.num_tokens}")
        self._fill(self._tokens_file, "bin", start_token * self.dtype.itemsize, out)

    def _fill(self, descriptor: int, suffix: str, offset: int, out: Integers) -> None:
        done = os.preadv(descriptor, [out], offset)
        while done < out.nbytes:  # a read may stop early, at 2 GiB at the latest
            got = os.preadv(descriptor, [memoryview(out).cast("B")[done:]], offset + done)
            if not got:
                path = dataset_file(self.prefix, suffix)
                raise DamagedError(f"{path}: ends early", got=f"{offset + done} bytes")
            done += got

    def read(self, start_token: int, count: int) -> Integers:
        """Tokens `start_token` to `start_token + count` of the whole stream, [count]."""
        if count < 0:
            raise IndexError(f"{self.prefix}: {count} tokens")
        out = np.empty(count, dtype=self.dtype)
        self.read_into(start_token, out)
        return out

    def read_mask(self, start_token: int, count: int) -> npt.NDArray[np.bool_]:
        """Which of the tokens from `start_token` on carry loss when they are a label, [count].

        All do in a dataset without a mask.
        """
        if self._mask_file is None:
            return np.ones(count, dtype=np.bool_)
        if not 0 <= start_token <= self.num_tokens - count:
            raise IndexError(f"{self.prefix}: tokens {start_token}+{count} of {self.num_tokens}")
        first, skip = divmod(start_token, 8)
        packed = np.empty((skip + count + 7) // 8, dtype=np.uint8)
        self._fill(self._mask_file, "mask", first, packed)
        return np.unpackbits(packed, count=skip + count, bitorder="little")[skip:].view(np.bool_)

    def sequence(self, index: int) -> Integers:
        """The tokens of one sequence."""
        if not 0 <= index < self.num_sequences:
            raise IndexError(f"{self.prefix}: sequence {index} of {self.num_sequences}")
        return self.read(self.offsets[index], int(self.lengths[index]))


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
    if not count:
        return np.empty(0, PARTS_DTYPE)
    return map_for_random_reads(path, PARTS_DTYPE)
