"""What the tests of data/ build on the spot: folders of trajectories, and small packed datasets."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tpt_megatron.artifact import manifest_of_files, write_manifest
from tpt_megatron.data.writer import IndexedWriter
from tpt_megatron.records import TRAJECTORY_SCHEMA

Row = tuple[str, str, str]  # id, text, thinking


@pytest.fixture
def make_trajectories() -> Callable[..., Path]:
    """make(folder, [[(id, text, thinking), ...], ...], source="", pending=0): one file per inner list."""

    def make(folder: Path, files: Sequence[Sequence[Row]], source: str = "", pending: int = 0) -> Path:
        folder.mkdir(parents=True)
        for number, rows in enumerate(files):
            table = pa.Table.from_pylist([trajectory(*row, source) for row in rows], TRAJECTORY_SCHEMA)
            pq.write_table(table, folder / f"part-{number:05d}.parquet", compression="zstd")
        about = {"counts": {"in": sum(map(len, files)), "pending": pending}}
        write_manifest(folder / "manifest.json", manifest_of_files(folder, "trajectories", about))
        return folder

    return make


def trajectory(identity: str, text: str, thinking: str, source: str) -> dict[str, Any]:
    zeros = dict.fromkeys(["sample", "seed", "document_tokens", "thinking_tokens"], 0)
    words = dict.fromkeys(["prompt", "generator", "revision"], "x")
    row = {"id": identity, "text": text, "thinking": thinking, "source": source, "meta": "{}"}
    return {**zeros, **words, **row, "finish_reason": "stop", "seed_honored": True, "truncated": False}


@pytest.fixture
def make_dataset() -> Callable[..., Path]:
    """make(prefix, [(ids, thinking_start, thinking_end), ...], vocab_size, fingerprint)."""

    def make(
        prefix: Path,
        sequences: Sequence[tuple[Sequence[int], int, int]],
        vocab_size: int = 600,
        fingerprint: str = "f" * 64,
    ) -> Path:
        about = {"tokenizer": {"name": "t", "fingerprint": fingerprint, "vocab_size": vocab_size}}
        with IndexedWriter(prefix, vocab_size) as writer:
            for ids, start, end in sequences:
                writer.add(ids, start, end, 0)
            writer.finish(about)
        return prefix

    return make


@pytest.fixture
def random_sequences() -> Callable[..., list[tuple[list[int], int, int]]]:
    """make(count, longest, seed, vocab_size): sequences of 1 to `longest` ids with a thought somewhere."""

    def make(
        count: int, longest: int, seed: int = 0, vocab_size: int = 600
    ) -> list[tuple[list[int], int, int]]:
        random = np.random.default_rng(seed)
        out = []
        for _ in range(count):
            length = int(random.integers(1, longest + 1))
            start, end = sorted(random.integers(0, length + 1, size=2).tolist())
            out.append((random.integers(0, vocab_size, size=length).tolist(), start, end))
        return out

    return make
