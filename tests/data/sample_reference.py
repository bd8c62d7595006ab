"""What samples must be, by plain lists alone: reads the files of a dataset with numpy and nothing of ours."""

import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

IGNORED = -100
Lists = tuple[list[int], list[int], list[int], list[int], list[bool]]


def load(prefix: Path, length: int, end: int, packing: str, document_mask: bool) -> list[Lists]:
    """tokens, labels, positions, cu_seqlens and thinking of every row of a packed dataset."""
    raw = Path(f"{prefix}.idx").read_bytes()
    _, _, code, count, _ = struct.unpack("<9sQBQQ", raw[:34])
    lengths = np.frombuffer(raw[34 : 34 + 4 * count], "<i4").tolist()
    ids = np.fromfile(f"{prefix}.bin", "<u2" if code == 8 else "<i4").tolist()
    parts = np.fromfile(f"{prefix}.parts", "<i4").reshape(-1, 3).tolist()
    mask = Path(f"{prefix}.mask")
    bits = np.unpackbits(np.fromfile(mask, np.uint8), bitorder="little") if mask.exists() else [1] * len(ids)
    stream: list[Any] = []  # (id, document, place within it, thinks, carries loss)
    for document, size in enumerate(lengths):
        for place in range(size):
            thinks = parts[document][0] <= place < parts[document][1]
            stream.append((ids[len(stream)], document, place, thinks, bool(bits[len(stream)])))
    if packing == "concat":
        rows = [stream[w : w + length + 1] for w in range(0, len(stream) - length, length)]
        return [as_lists(row, length, document_mask) for row in rows]
    starts = [sum(lengths[:document]) for document in range(count)]
    rows = []
    for items in plan_items(prefix):
        row = [stream[starts[d] + s + i] for d, s, n in items for i in range(n)]
        document, start, size = items[-1]
        if len(row) == length and start + size < lengths[document]:
            row.append(stream[starts[document] + start + size])
        rows.append(row + [(end, -1, 0, False, False)] * (length + 1 - len(row)))
    return [as_lists(row, length, True) for row in rows]


def as_lists(row: list[Any], length: int, document_mask: bool) -> Lists:
    tokens, labels, positions, bounds, thinking, position = [], [], [], [0], [], 0
    for here, there in pairwise(row[: length + 1]):
        tokens.append(here[0])
        positions.append(position)
        crosses = document_mask and (here[1] != there[1] or there[1] == -1)
        counted = there[4] and not crosses
        labels.append(there[0] if counted else IGNORED)
        thinking.append(counted and there[3])
        position += 1
        if document_mask and here[1] != there[1]:
            position = 0
            bounds.append(len(tokens))
    return tokens, labels, positions, bounds if bounds[-1] == length else [*bounds, length], thinking


def plan_items(prefix: Path) -> list[list[tuple[int, int, int]]]:
    """The (document, first token, tokens) of each bin of a plan."""
    raw = Path(f"{prefix}.plan").read_bytes()
    _, _, _, _, bins, items, _ = struct.unpack("<8sQQQQQ16s", raw[:64])
    rows = [struct.unpack_from("<qii", raw, 64 + 16 * i) for i in range(items)]
    bounds = np.frombuffer(raw[64 + 16 * items :], "<i8").tolist()
    return [rows[bounds[b] : bounds[b + 1]] for b in range(bins)]
