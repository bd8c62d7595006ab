"""best_fit's packing on disk: `NAME.plan`, written when a dataset is packed, mapped when it is read.

A header of 64 bytes, then items (16 bytes each), then int64 bin offsets [bins + 1]: bin b holds items
offsets[b]:offsets[b + 1], in the order of their sequences. All numbers are little-endian.
"""

import hashlib
import shutil
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tpt_megatron.data.best_fit import pack_lengths
from tpt_megatron.data.mapping import map_for_random_reads
from tpt_megatron.errors import DamagedError, InputError

HEADER = struct.Struct("<8sQQQQQ16s")  # magic, version, capacity, sequences, bins, items, checksum of these
MAGIC, VERSION = b"TPTPLAN1", 1
ITEM_DTYPE = np.dtype([("sequence", "<i8"), ("start", "<i4"), ("length", "<i4")])
SEQUENCES_PER_SEGMENT = 2**22  # packed at once: 250 MB; no bin crosses segments, which costs no padding

Lengths = npt.NDArray[np.int32]


@dataclass(frozen=True)
class PlanSummary:
    bins: int
    items: int
    padding_fraction: float  # of the tokens of all bins
    split_documents: int  # longer than a bin: the only ones that are cut


@dataclass(frozen=True)
class Plan:
    """A mapped plan; arrays are read where they are touched."""

    capacity: int  # tokens a bin, which is data.sequence_length
    sequences: int
    offsets: npt.NDArray[np.int64]  # [bins + 1]
    items: npt.NDArray[Any]  # [items] of ITEM_DTYPE

    @property
    def num_bins(self) -> int:
        return len(self.offsets) - 1


def write_plan(lengths: Lengths, capacity: int, output: Path | IO[bytes]) -> PlanSummary:
    """Pack sequences of `lengths` (mapped, unaligned or in memory) and write the plan, segment by segment.

    `output` is a path, or a file open for writing that can seek. Raises InputError for an empty sequence.
    """
    if isinstance(output, Path):
        with open(output, "wb") as file:
            return _write(lengths, capacity, file, output.parent)
    named = isinstance(output.name, str)  # what has no name is a number there
    return _write(lengths, capacity, output, Path(output.name).parent if named else None)


def _write(lengths: Lengths, capacity: int, file: IO[bytes], folder: Path | None) -> PlanSummary:
    begin = file.tell()
    file.write(bytes(HEADER.size))
    bins, items, tokens, split = 0, 0, 0, 0
    with tempfile.TemporaryFile(dir=folder) as offsets:  # has no name, so a kill leaves nothing behind
        for first in range(0, len(lengths), SEQUENCES_PER_SEGMENT):
            own = np.array(lengths[first : first + SEQUENCES_PER_SEGMENT], dtype=np.int32)
            if own.min() < 1:
                raise InputError(f"sequence {first + int(own.argmin())} has no tokens, so no place in a bin")
            packed = pack_lengths(own, capacity)
            records = np.empty(len(packed.length), dtype=ITEM_DTYPE)
            records["sequence"] = packed.sequence + first
            records["start"], records["length"] = packed.start, packed.length
            file.write(records.data)
            offsets.write((packed.offsets[:-1] + items).astype("<i8").data)
            bins, items = bins + packed.num_bins, items + len(records)
            tokens, split = tokens + int(own.sum(dtype=np.int64)), split + int((own > capacity).sum())
        offsets.write(np.array([items], dtype="<i8").data)
        offsets.seek(0)
        shutil.copyfileobj(offsets, file, 2**22)
    end = file.tell()
    file.seek(begin)
    file.write(_header(capacity, len(lengths), bins, items))
    file.seek(end)
    return PlanSummary(bins, items, 1 - tokens / (bins * capacity) if bins else 0.0, split)


def _header(capacity: int, sequences: int, bins: int, items: int) -> bytes:
    facts = struct.pack("<8sQQQQQ", MAGIC, VERSION, capacity, sequences, bins, items)
    return facts + hashlib.blake2b(facts, digest_size=16).digest()


def open_plan(path: Path) -> Plan:
    """The plan at `path`, mapped. Raises DamagedError where header or size are not what was written."""
    with open(path, "rb") as file:
        raw = file.read(HEADER.size)
    if len(raw) < HEADER.size:
        raise DamagedError(f"{path}: shorter than its header", got=f"{len(raw)} bytes")
    magic, version, capacity, sequences, bins, items, _ = HEADER.unpack(raw)
    if (magic, version) != (MAGIC, VERSION) or raw != _header(capacity, sequences, bins, items):
        raise DamagedError(f"{path}: not the header of a plan of ours", got=f"{magic!r}, version {version}")
    expected = HEADER.size + items * ITEM_DTYPE.itemsize + 8 * (bins + 1)
    if (size := path.stat().st_size) != expected:
        raise DamagedError(
            f"{path}: wrong size for {bins} bins of {items} items", got=size, expected=expected
        )
    mapped = map_for_random_reads(path)
    stop = HEADER.size + items * ITEM_DTYPE.itemsize
    return Plan(
        capacity=capacity,
        sequences=sequences,
        offsets=mapped[stop:].view("<i8"),
        items=mapped[HEADER.size : stop].view(ITEM_DTYPE),
    )
