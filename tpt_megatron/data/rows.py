"""The rows of a corpus on their way through packing: a batch of them, in columns.

Columns, because a Python object a document costs more than half as much as tokenizing it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tpt_megatron.records import BadRow

Messages = Sequence[Mapping[str, Any]]


@dataclass
class RowBatch:
    """Good rows in columns, column i of each is row i; bad rows stand apart.

    rows = len(ids) + len(bad) + left_out.
    """

    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)  # "" of a conversation
    sources: list[str] = field(default_factory=list)
    metas: list[Mapping[str, Any]] = field(default_factory=list)  # the row's other columns
    thoughts: list[str] | None = None  # of trajectories only, as the next two
    samples: list[int] | None = None
    finish_reasons: list[str] | None = None
    messages: list[Messages] | None = None  # of conversations only
    bad: list[BadRow] = field(default_factory=list)
    left_out: int = 0  # rows that `corpus.where` leaves out

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def rows(self) -> int:
        """Rows of the input that this batch accounts for."""
        return len(self.ids) + len(self.bad) + self.left_out

    def select(self, kept: Sequence[int]) -> "RowBatch":
        """The good rows `kept`, in that order, without the bad ones."""

        def take[T](column: list[T] | None) -> list[T] | None:
            return None if column is None else [column[i] for i in kept]

        return RowBatch(
            ids=[self.ids[i] for i in kept],
            texts=[self.texts[i] for i in kept],
            sources=[self.sources[i] for i in kept],
            metas=[self.metas[i] for i in kept],
            thoughts=take(self.thoughts),
            samples=take(self.samples),
            finish_reasons=take(self.finish_reasons),
            messages=take(self.messages),
        )
