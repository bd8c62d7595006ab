"""Bad rows get the numbers of their lines, which a block in the middle of a file does not know."""

from collections.abc import Iterable, Iterator
from itertools import chain, groupby, repeat, tee
from typing import Any

from tpt_megatron.data.lines import line_numbers
from tpt_megatron.errors import InputError


def numbered(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows (of records.BadRow) with their lines filled in from their offsets, in one pass over each file.

    A row keeps line 0 where its file can no longer be read so far: its offset still tells where it was.
    """
    for (file, unknown), group in groupby(
        rows, lambda row: (row["file"], not row["line"] and row["offset"] >= 0)
    ):
        if not unknown:
            yield from group
            continue
        group, places = tee(group)
        lines = _lines_or_nothing(file, (row["offset"] for row in places))
        for row, line in zip(group, chain(lines, repeat(0)), strict=False):
            yield {**row, "line": line}


def _lines_or_nothing(file: str, offsets: Iterable[int]) -> Iterator[int]:
    try:
        yield from line_numbers(file, offsets)
    except (InputError, EOFError):
        return
