"""Rows of JSON lines, plain or compressed."""

from collections.abc import Iterator

import orjson

from tpt_megatron.data.chunks import Chunk, OneRow, Outcome
from tpt_megatron.data.columns import Picker
from tpt_megatron.data.files import format_of, open_unpacked, readable
from tpt_megatron.data.lines import Lines, LongLine, read_lines
from tpt_megatron.data.rows import RowBatch
from tpt_megatron.data.where import BadCellError
from tpt_megatron.records import BadRow


class LineChunk:
    """Lines with a row each, blank ones between them.

    A row's line number is 0 where the first line of the range is not the file's first; lines.line_numbers
    finds it by the offset.
    """

    def __init__(self, url: str, lines: Lines, numbered: bool, picker: Picker) -> None:
        self._url, self._lines, self._numbered, self._picker = url, lines, numbered, picker

    def __len__(self) -> int:
        return len(self._lines.lines) - sum(map(bytes.isspace, self._lines.lines))

    def split(self, rows: int) -> tuple["LineChunk", "LineChunk"]:
        lines, index = self._lines.lines, 0
        while rows and index < len(lines):
            rows -= not lines[index].isspace()
            index += 1
        first = Lines(lines[:index], self._lines.offset, self._lines.number)
        rest = Lines(lines[index:], self._lines.offset_of(index), self._lines.number + index)
        return self._like(first), self._like(rest)

    def _like(self, lines: Lines) -> "LineChunk":
        return LineChunk(self._url, lines, self._numbered, self._picker)

    def add_to(self, batch: RowBatch) -> bool:
        loads = orjson.loads
        try:
            rows = [loads(line) for line in self._lines.lines]
        except orjson.JSONDecodeError:  # a blank line too
            return False
        return self._picker.many(rows, batch)

    def outcomes(self) -> Iterator[Outcome]:
        offset = self._lines.offset
        for number, line in enumerate(self._lines.lines, start=self._lines.number):
            if not line.isspace():
                try:
                    # Refuses invalid UTF-8, lone surrogates, NaN and 1,024 levels of nesting.
                    yield self._picker.one(orjson.loads(line))
                except orjson.JSONDecodeError as error:
                    yield self._bad(offset, number, f"not JSON in UTF-8: {error}")
                except BadCellError as error:
                    yield self._bad(offset, number, str(error))
            offset += len(line)

    def _bad(self, offset: int, number: int, reason: str) -> BadRow:
        return BadRow(self._url, number if self._numbered else 0, reason, offset)


def json_chunks(
    url: str, start: int, stop: int | None, max_row_bytes: int, picker: Picker
) -> Iterator[Chunk]:
    """The rows of the lines that begin in [start, stop) of the file, which counts as stored.

    Raises InputError, naming the file, where it cannot be read to its end.
    """
    compressed = format_of(url) != "jsonl"
    with readable(url), open_unpacked(url) as stream:
        for lines in read_lines(stream, max_row_bytes, start, None if compressed else stop):
            if isinstance(lines, LongLine):
                reason = f"a line of {lines.length} bytes, over corpus.max_row_bytes={max_row_bytes}"
                yield OneRow(BadRow(url, 0 if start else lines.number, reason, lines.offset))
            else:
                yield LineChunk(url, lines, not start, picker)
