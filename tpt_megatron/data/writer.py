"""Writes datasets from token ids at hand, for tools and tests; `tpt pack` assembles its own (assemble.py)."""

import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from tpt_megatron.artifact import (
    BLOCK_BYTES,
    Digester,
    FileDigest,
    Manifest,
    digest_file,
    temporary_beside,
)
from tpt_megatron.data.layout import (
    CORE,
    EXTRAS,
    PARTS_DTYPE,
    dataset_file,
    token_dtype,
)
from tpt_megatron.data.publish import SEQUENCES_PER_WRITE, publish, write_index
from tpt_megatron.errors import InputError

WRITE_BYTES = 2**20

Integers = npt.NDArray[np.integer[Any]]


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
        write_index(
            lambda data: self._write("idx", data), self._lengths_in_parts, self.num_sequences, self.dtype
        )
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self._open_files.close()
        digests = {suffix: digester.digest() for suffix, digester in self._digests.items()}
        digests |= {suffix: _sync_and_digest(self.temporary(suffix), self.block_bytes) for suffix in extras}
        return publish(self.prefix, {s: self.temporary(s) for s in digests}, digests, about, self.block_bytes)

    def _lengths_in_parts(self) -> Iterator[npt.NDArray[np.int32]]:
        lengths = np.frombuffer(self._lengths, dtype=np.int32)
        return (lengths[i : i + SEQUENCES_PER_WRITE] for i in range(0, len(lengths), SEQUENCES_PER_WRITE))

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
