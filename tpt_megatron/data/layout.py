"""The bytes of a dataset on disk: names, header and types that its writer and its reader share.

`.idx` (facts: megatron-core 0.19.2): a 34-byte header, then without padding int32 lengths [sequences],
int64 byte pointers [sequences], int64 document indices [sequences + 1]; each sequence is one document.
All numbers are little-endian. Without its manifest, written last, it is not a dataset.
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, documents + 1
MAGIC, VERSION = b"MMIDIDX\x00\x00", 1
DTYPE_CODES: Mapping[int, str] = {4: "<i4", 8: "<u2"}
PARTS_DTYPE = np.dtype([("thinking_start", "<i4"), ("thinking_end", "<i4"), ("source", "<i4")])
CORE = ("bin", "parts", "idx")
# What else may stand under a dataset's name. mask: a bit per token that carries loss, least significant
# first (SFT only); plan: best_fit's packing.
EXTRAS = ("mask", "plan", "lineage.parquet", "quarantine.jsonl")


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 below 65,500 ids, else int32: megatron.core's own rule."""
    return np.dtype("<u2" if vocab_size < 65500 else "<i4")


def dtype_code(dtype: np.dtype[Any]) -> int:
    """The number that stands for `dtype` in the header."""
    return next(code for code, name in DTYPE_CODES.items() if np.dtype(name) == dtype)


def dataset_file(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(f"{prefix.name}.{suffix}")
