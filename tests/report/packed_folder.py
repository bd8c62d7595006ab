"""Small packed datasets whose rows stand beside their files in plain Python, to count every figure again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tpt_megatron.data.writer import IndexedWriter


@dataclass
class Packed:
    """One sequence: its tokens, where its thought is, and what its lineage says besides."""

    ids: Sequence[int]
    start: int
    end: int
    source: str = "wiki"
    finish_reason: str = "stop"
    meta: Mapping[str, Any] | None = None
    trained: Sequence[int] | None = None  # a bit per token

    @property
    def thinking(self) -> int:
        return self.end - self.start

    @property
    def document(self) -> int:
        return len(self.ids) - self.thinking


def totals(rows: Sequence[Packed]) -> dict[str, int]:
    document, thinking = sum(row.document for row in rows), sum(row.thinking for row in rows)
    return {
        "sequences": len(rows), "tokens": document + thinking,
        "document_tokens": document, "thinking_tokens": thinking,
    }  # fmt: skip


def write_packed(
    prefix: Path,
    rows: Sequence[Packed],
    tokenizer: tuple[str, str] = ("nowhere", "f"),
    counts: Mapping[str, Any] | None = None,
    lineage: Mapping[str, Any] | None = None,
    vocab_size: int = 700,
) -> Path:
    """The dataset of `rows`; `counts` and `lineage` replace what the manifest and the columns would say."""
    sources = list(dict.fromkeys(row.source for row in rows))
    with IndexedWriter(prefix, vocab_size) as writer:
        for row in rows:
            writer.add(row.ids, row.start, row.end, sources.index(row.source))
        columns = {
            "id": [f"doc-{number}" for number in range(len(rows))],
            "sample": pa.array([0] * len(rows), pa.int32()),
            "source": [row.source for row in rows],
            "document_tokens": pa.array([row.document for row in rows], pa.int32()),
            "thinking_tokens": pa.array([row.thinking for row in rows], pa.int32()),
            "finish_reason": [row.finish_reason for row in rows],
        }
        if any(row.meta is not None for row in rows):
            columns["meta"] = ["" if row.meta is None else json.dumps(row.meta) for row in rows]
        table = pa.table({**columns, **(lineage or {})})
        pq.write_table(table, writer.temporary("lineage.parquet"), row_group_size=7)
        extras = ["lineage.parquet"]
        if any(row.trained is not None for row in rows):
            bits = np.concatenate([np.array(row.trained, np.uint8) for row in rows])
            writer.temporary("mask").write_bytes(np.packbits(bits, bitorder="little").tobytes())
            extras.append("mask")
        by_source = {source: totals([row for row in rows if row.source == source]) for source in sources}
        about = {
            "tokenizer": {"name": tokenizer[0], "fingerprint": tokenizer[1], "vocab_size": vocab_size},
            "style": "think_tags",
            "sources": sources,
            "counts": {
                **totals(rows), "in": len(rows), "quarantined": 0, "left_out": {}, "by_source": by_source,
                **(counts or {}),
            },
        }  # fmt: skip
        writer.finish(about, extras)
    return prefix
