"""Lines of a stream: every line once, at its place, whatever the reads and ranges; long ones never held."""

import io
import random
import time
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest

from tpt_megatron.data.lines import Lines, LongLine, line_numbers, read_lines
from tpt_megatron.errors import InputError

TEXTS = [
    b"",
    b"a",
    b"\n",
    b"a\n",
    b"a\nb",
    b"\n\na\n\n",
    b"a\r\nb\r\n",
    b"\x00\n\x00\x00\nx",
    b"one\ntwo\nthree three three three\nfour\n",
]


def flat(raw: bytes, max_line_bytes: int = 100, **ranges: int | None) -> list[tuple[int, int, bytes | int]]:
    """(offset, number, line without newline or its length) of every line."""
    out: list[tuple[int, int, bytes | int]] = []
    for found in read_lines(io.BytesIO(raw), max_line_bytes, **ranges):  # type: ignore[arg-type]
        if isinstance(found, LongLine):
            out.append((found.offset, found.number, found.length))
            continue
        for index, line in enumerate(found.lines):
            out.append((found.offset_of(index), found.number + index, line.removesuffix(b"\n")))
    return out


def expected(raw: bytes, max_line_bytes: int = 100) -> list[tuple[int, int, bytes | int]]:
    out: list[tuple[int, int, bytes | int]] = []
    offset = 0
    for number, line in enumerate(raw.removesuffix(b"\n").split(b"\n") if raw else [], start=1):
        out.append((offset, number, line if len(line) <= max_line_bytes else len(line)))
        offset += len(line) + 1
    return out


@pytest.mark.parametrize("read_bytes", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("limit", [3, 100])
@pytest.mark.parametrize("raw", TEXTS)
def test_lines_have_their_places(raw: bytes, limit: int, read_bytes: int) -> None:
    assert flat(raw, limit, read_bytes=read_bytes) == expected(raw, limit)


@pytest.mark.parametrize("seed", range(8))
def test_ranges_that_tile_a_file_give_each_line_once(seed: int) -> None:
    draw = random.Random(seed)
    raw = b"".join(bytes(draw.choices(b"ab\n", k=draw.randrange(9))) + b"\n" for _ in range(30))
    raw = raw[: draw.randrange(len(raw) // 2, len(raw))]
    for count in (1, 2, 5, len(raw)):
        bounds = [len(raw) * i // count for i in range(count + 1)]
        parts = [
            flat(raw, 5, start=start, stop=stop, read_bytes=draw.randrange(1, 9))
            for start, stop in pairwise(bounds)
        ]
        assert [(o, line) for part in parts for o, _, line in part] == [
            (o, line) for o, _, line in expected(raw, 5)
        ]
        assert all(number == i for part in parts for i, (_, number, _) in enumerate(part, start=1))


def test_the_byte_order_mark_is_no_part_of_a_line() -> None:
    assert flat(b"\xef\xbb\xbf{}\n\xef\xbb\xbf\n") == [(3, 1, b"{}"), (6, 2, b"\xef\xbb\xbf")]


class Endless(io.RawIOBase):
    """A stream of `size` bytes of one line, then a short one; nothing of it is stored."""

    def __init__(self, size: int) -> None:
        self.left = size
        self.tail = io.BytesIO(b"\nshort\n")
        self.same = b"x" * 2**20

    def seek(self, offset: int, whence: int = 0) -> int:
        return offset

    def read(self, size: int = -1) -> bytes:
        if not self.left:
            return self.tail.read(size)
        data = self.same[: min(size, self.left)]
        self.left -= len(data)
        return data


def test_a_line_of_a_gib_is_never_held() -> None:
    tracemalloc.start()
    found = list(read_lines(Endless(2**30), 2**20))  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [LongLine(0, 1, 2**30), Lines([b"short\n"], 2**30 + 1, 2)]
    assert peak < 6 * 2**20


def test_a_range_inside_a_long_line_is_read_and_no_more() -> None:
    stream = Endless(2**24)
    assert list(read_lines(stream, 100, start=1, stop=2**21)) == []  # type: ignore[arg-type]
    assert 2**24 - stream.left < 2**22


def test_the_numbers_of_lines_come_from_their_offsets(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    lines = [b"x" * (i * 7919 % 5000) * (i != 701) for i in range(4000)]
    path.write_bytes(b"\n".join(lines))
    places = expected(path.read_bytes(), 10**6)
    chosen = [places[i] for i in (0, 1, 2, 700, 701, 702, 3999)]
    assert list(line_numbers(str(path), [o for o, _, _ in chosen])) == [n for _, n, _ in chosen]
    with pytest.raises(InputError, match=r"x\.jsonl.*before byte 999999999"):
        list(line_numbers(str(path), [999_999_999]))


def test_a_place_costs_the_bytes_before_it_and_no_copy_of_those_behind(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"x\n" * 2**20)
    started = time.process_time()
    assert list(line_numbers(str(path), range(0, 2**18, 2))) == list(range(1, 2**17 + 1))
    assert time.process_time() - started < 3  # with a copy of the 2 MiB at each place, 20 s
