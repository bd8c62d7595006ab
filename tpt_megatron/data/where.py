"""`corpus.where`: comparisons that a row's columns have to pass."""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tpt_megatron.errors import ConfigError

ORDERED: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class BadCellError(ValueError):
    """A cell that makes its row no row; the message is the reason."""


@dataclass(frozen=True, slots=True)
class _Condition:
    column: str
    parts: tuple[str, ...]  # of a dotted path into nested columns
    compare: Callable[[Any, Any], bool]
    value: str | float | bool
    words: frozenset[str]  # of "in": the alternatives, as text and as numbers
    numbers: frozenset[float]


def at_path(row: Mapping[str, Any], name: str) -> Any:
    """The cell of the column `name`, or of the dotted path into nested columns; None where there is none."""
    cell: Any = row
    if name in row:
        return row[name]
    for part in name.split("."):
        cell = cell.get(part) if isinstance(cell, Mapping) else None
    return cell


class Where:
    """The conjunction of `conditions` (column, comparison, value).

    A column is a name or a dotted path ("eai_taxonomy.education_level.primary.code"). Text compares with
    text, numbers with numbers. The value of "in" lists alternatives with commas: "CC-MAIN-2024-10, ...".
    """

    def __init__(self, conditions: Sequence[tuple[str, str, str | float | bool]]) -> None:
        self._conditions = tuple(_condition(*condition) for condition in conditions)
        self.columns = tuple(dict.fromkeys(c.column for c in self._conditions))

    def __bool__(self) -> bool:
        return bool(self._conditions)

    def passes(self, row: Mapping[str, Any]) -> bool:
        """Whether the row passes all; one that lacks a column does not.

        Raises BadCellError for a cell that does not compare with the condition's value.
        """
        return all(_passes(condition, _cell(row, condition)) for condition in self._conditions)


def _condition(column: str, comparison: str, value: str | float | bool) -> _Condition:
    if comparison != "in":
        return _Condition(
            column, tuple(column.split(".")), ORDERED[comparison], value, frozenset(), frozenset()
        )
    if not isinstance(value, str):
        raise ConfigError(
            f"corpus.where: 'in' on {column}", got=repr(value), expected="alternatives in a string: 'a, b'"
        )
    words = frozenset(word.strip() for word in value.split(","))
    numbers = frozenset(float(word) for word in words if _is_number(word))
    return _Condition(column, tuple(column.split(".")), operator.contains, value, words, numbers)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _cell(row: Mapping[str, Any], condition: _Condition) -> Any:
    if condition.column in row:
        return row[condition.column]
    cell: Any = row
    for part in condition.parts:
        if not isinstance(cell, dict):
            return None
        cell = cell.get(part)
    return cell


def _passes(condition: _Condition, cell: Any) -> bool:
    if cell is None:
        return False
    value = condition.value
    number = isinstance(cell, int | float) and not isinstance(cell, bool)
    if condition.compare is operator.contains:
        if isinstance(cell, str):
            return cell in condition.words
        if number:
            return cell in condition.numbers
    elif isinstance(value, bool):
        if isinstance(cell, bool):
            return condition.compare(cell, value)
    elif isinstance(cell, str) if isinstance(value, str) else number:
        return condition.compare(cell, value)
    held = f"{type(cell).__name__} {cell!r:.40}"
    raise BadCellError(
        f"corpus.where: {condition.column!r} holds {held}, which does not compare with {value!r}"
    )
