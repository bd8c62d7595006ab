"""The journal survives a cut at any byte and tells a changed one."""

from pathlib import Path

import pytest

from tpt_megatron.errors import DamagedError
from tpt_megatron.thinking.journal import HEADER, Journal

RECORDS = [{"key": "a", "output_ids": [1, 2, 3]}, {"key": "b", "text": "é\n"}, {"key": "c", "output_ids": []}]


def write(path: Path) -> list[int]:
    """A journal of RECORDS; the offsets behind each record, 0 first."""
    journal, ends = Journal(path), [0]
    for record in RECORDS:
        journal.append(record)
        ends.append(path.stat().st_size)
    journal.sync()
    journal.close()
    return ends


def read(path: Path) -> list[dict[str, object]]:
    journal = Journal(path)
    journal.close()
    return journal.records


def test_a_journal_cut_at_any_byte_keeps_what_was_whole_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    ends = write(path)
    data = path.read_bytes()
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        whole = sum(size >= end for end in ends) - 1
        journal = Journal(path)
        assert journal.records == RECORDS[:whole], size
        journal.append({"key": "new"})
        journal.close()
        assert read(path) == [*RECORDS[:whole], {"key": "new"}], size


@pytest.mark.parametrize("filler", [b"\0", b"\xff"])
def test_a_tail_of_garbage_is_cut(tmp_path: Path, filler: bytes) -> None:
    path = tmp_path / "journal"
    ends = write(path)
    path.write_bytes(path.read_bytes() + filler * 50)
    assert read(path) == RECORDS
    assert path.stat().st_size == ends[-1]


def test_any_changed_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    ends = write(path)
    data = path.read_bytes()
    for offset in range(len(data)):
        path.write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
        record = sum(offset >= end for end in ends) - 1
        length_changed = offset - ends[record] < 4
        if record == len(RECORDS) - 1 or length_changed:
            assert read(path) == RECORDS[:record], offset
        else:
            with pytest.raises(DamagedError, match=f"byte {ends[record]} "):
                Journal(path)
            assert path.stat().st_size == len(data), "a damaged journal is left as it is"


def test_the_header_is_as_documented() -> None:
    assert HEADER.size == 12
