"""An append-only file of records that survives a kill at any byte.

A record is a header (payload's length and xxh3-64, little-endian) and a payload of JSON.
"""

import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import xxhash

from tpt_megatron.artifact import fsync_folder
from tpt_megatron.errors import DamagedError

HEADER = struct.Struct("<IQ")  # bytes of the payload, xxh3-64 of the payload, seeded with the length


class Journal:
    """The records at `path`, replayed into `records` on opening; what is appended is not added to them.

    A torn tail, the mark of a kill, is cut off. Raises DamagedError where a bad record has a good one
    behind it: no kill does that, so the file was changed.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.records: list[dict[str, Any]] = []
        # Unbuffered: once `append` returns, the record outlives this process.
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115  # closed by `close`
        fsync_folder(path.parent)
        self._file.seek(0)
        data = self._file.readall()
        self._end = self._replay(data)
        if self._end < len(data):
            self._file.truncate(self._end)
            self.sync()

    def _replay(self, data: bytes) -> int:
        """Fill `records`; returns the offset behind the last good record."""
        offset = 0
        while (payload := _payload(data, offset)) is not None:
            self.records.append(orjson.loads(payload))
            offset += HEADER.size + len(payload)
        if offset + HEADER.size <= len(data):
            size, _ = HEADER.unpack_from(data, offset)
            if _payload(data, offset + HEADER.size + size) is not None:
                raise DamagedError(
                    f"{self.path}: the record at byte {offset} does not match its checksum",
                    fix="delete the file: its requests are generated again",
                )
        return offset

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one JSON-able record; `sync` makes it outlive the machine as well."""
        payload = orjson.dumps(record)
        frame = memoryview(HEADER.pack(len(payload), _checksum(payload)) + payload)
        while frame:  # a raw write may take a part only
            frame = frame[self._file.write(frame) :]

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _checksum(payload: bytes) -> int:
    digest: int = xxhash.xxh3_64_intdigest(payload, seed=len(payload))
    return digest


def _payload(data: bytes, offset: int) -> bytes | None:
    """The payload of the record at `offset`, None where there is no whole and sound one."""
    start = offset + HEADER.size
    if start > len(data):
        return None
    size, checksum = HEADER.unpack_from(data, offset)
    payload = data[start : start + size]
    return payload if len(payload) == size and _checksum(payload) == checksum else None
