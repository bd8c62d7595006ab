"""The two records that stages exchange: a document, and a trajectory written about it.

Trajectories are Parquet rows of TRAJECTORY_SCHEMA; one row per (id, sample).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import xxhash


@dataclass(frozen=True, slots=True)
class Document:
    """One raw document. `id` is unique in its corpus; `meta` is JSON-able."""

    id: str
    text: str
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row of the input that is not a document; it goes to quarantine, its neighbours live."""

    file: str
    line: int  # from 1; in Parquet the row
    reason: str
    offset: int = (
        -1
    )  # of the line's first byte, in the file as stored or, if compressed, as unpacked; -1: none


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One document with the thought written about it; the columns of design.md's contract."""

    id: str
    sample: int
    text: str
    thinking: str
    finish_reason: str  # "stop" or "length"
    prompt: str  # the prompt's name and a hash of its text
    generator: str
    revision: str
    seed: int
    seed_honored: bool
    document_tokens: int
    thinking_tokens: int
    truncated: bool  # the generator saw a cut document; `text` is whole all the same
    source: str
    meta: str  # JSON


TRAJECTORY_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("thinking", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt", pa.string()),
        ("generator", pa.string()),
        ("revision", pa.string()),
        ("seed", pa.int64()),
        ("seed_honored", pa.bool_()),
        ("document_tokens", pa.int32()),
        ("thinking_tokens", pa.int32()),
        ("truncated", pa.bool_()),
        ("source", pa.string()),
        ("meta", pa.string()),
    ]
)


def text_id(text: str) -> str:
    """The id of a document that brings none: xxh3-128 of its UTF-8 text, in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(text.encode())


def stable_hash(*parts: object) -> str:
    """SHA-256 over the JSON of `parts`: the same on every machine and in every run."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
