"""Bad rows get the numbers of their lines, which a block in the middle of a file does not know."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from tpt_megatron.data.lines import line_numbers
from tpt_megatron.errors import InputError


def numbered(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows (of records.BadRow) with their lines filled in from their offsets, in one pass over each file.

    The offsets of a file ascend, and its rows stand together; rows that need no number may stand between
    them. A row keeps line 0 where its file can no longer be read so far: its offset still tells where it was.
    """
    file: str | None = None
    place: deque[int] = deque()  # the offset that is asked for
    lines: Iterator[int] = iter(())
    for row in rows:
        if row["line"] or row["offset"] < 0:
            yield row
            continue
        if row["file"] != file:
            file, place = row["file"], deque()
            lines = _lines_or_nothing(row["file"], iter(place.popleft, None))
        place.append(row["offset"])
        yield {**row, "line": next(lines, 0)}


def _lines_or_nothing(file: str, offsets: Iterable[int]) -> Iterator[int]:
    try:
        yield from line_numbers(file, offsets)
    except (InputError, EOFError):
        return
