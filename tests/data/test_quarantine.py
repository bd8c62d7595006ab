"""Bad rows get the numbers of their lines: each file read once, whatever stands between its rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tpt_megatron.data import lines
from tpt_megatron.data.files import ByteStream
from tpt_megatron.data.quarantine import numbered
from tpt_megatron.records import BadRow


def bad(path: Path | str, offset: int, line: int = 0) -> dict[str, Any]:
    return asdict(BadRow(str(path), line, "bad", offset))


class Reading:
    """A stream whose bytes are counted."""

    def __init__(self, stream: ByteStream, sizes: list[int]) -> None:
        self.stream, self.sizes = stream, sizes

    def read(self, size: int, /) -> bytes | None:
        data = self.stream.read(size)
        self.sizes[-1] += len(data or b"")
        return data


@pytest.fixture
def read_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets, for each file that is opened, the bytes that were read of it."""
    sizes: list[int] = []
    opened = lines.open_unpacked

    @contextmanager
    def counted(url: str) -> Iterator[Reading]:
        sizes.append(0)
        with opened(url) as stream:
            yield Reading(stream, sizes)

    monkeypatch.setattr(lines, "open_unpacked", counted)
    return sizes


def test_a_file_is_read_once_with_other_rows_between(tmp_path: Path, read_sizes: list[int]) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(b"x" * 99 + b"\n" + b"short\n" * 2000)
    rows, expected = [], []
    for name in "ab":
        for line in range(2, 2002):
            between = [bad(tmp_path / name, -1), bad("reader", -1, 7), bad(tmp_path / "z", 5, 3)]
            rows += [bad(tmp_path / name, 100 + 6 * (line - 2)), *between]
            expected += [line, 0, 7, 3]
    out = list(numbered(iter(rows)))
    assert [row["line"] for row in out] == expected
    assert [{**row, "line": 0} for row in out] == [{**row, "line": 0} for row in rows]
    assert read_sizes == [100 + 6 * 2000] * 2


def test_rows_come_out_as_they_come_in(tmp_path: Path) -> None:
    """Nothing is held back: memory does not grow with the rows."""
    (tmp_path / "x").write_bytes(b"a\n" * 1000)
    taken = 0

    def rows() -> Any:
        nonlocal taken
        for index in range(1000):
            taken += 1
            yield bad(tmp_path / "x", 2 * index)

    for number, row in enumerate(numbered(rows()), start=1):
        assert (row["line"], taken) == (number, number)


def test_a_file_that_is_gone_or_shorter_keeps_its_rows(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"a\nb\n")
    (tmp_path / "whole").write_bytes(b"a\nb\n")
    rows = [bad(tmp_path / "short", at) for at in (0, 2, 99, 100)]
    rows += [bad(tmp_path / "gone", 1), bad(tmp_path / "gone", 2), bad(tmp_path / "whole", 2)]
    assert [row["line"] for row in numbered(rows)] == [1, 2, 0, 0, 0, 0, 2]
