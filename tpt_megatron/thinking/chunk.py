"""A run of consecutive documents that becomes one Parquet file, published whole by an exclusive link."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tpt_megatron.artifact import fsync_folder, temporary_beside
from tpt_megatron.errors import DamagedError, InputError
from tpt_megatron.records import TRAJECTORY_SCHEMA, Document, Trajectory
from tpt_megatron.thinking.journal import Journal

REJECTED = b"tpt.rejected"  # key of the Parquet file's metadata: [[id, reason], ...] of this chunk


@dataclass(frozen=True, slots=True)
class Numbered:
    """A document and its place among the rows of the corpus, from 1."""

    position: int
    document: Document


@dataclass(frozen=True, slots=True)
class Rejected:
    """A document that gets no trajectory, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Tally:
    """What one settled document adds to the job's counts."""

    position: int
    id: str
    rejected: str | None  # the reason
    finish_reason: str = ""
    document_tokens: int = 0
    thinking_tokens: int = 0


class Chunk:
    """Documents, the outcome of each, and the journal that keeps finished answers until all are there."""

    def __init__(self, folder: Path, number: int, documents: Sequence[Numbered]) -> None:
        self.path = folder / f"part-{number:05d}.parquet"
        self.journal_path = folder / "journal" / f"owner-0-part-{number:05d}.journal"
        self.documents = documents
        self._outcomes: list[Trajectory | Rejected | None] = [None] * len(documents)
        self._missing = len(documents)
        self._journal: Journal | None = None

    @property
    def journal(self) -> Journal:
        if self._journal is None:
            self._journal = Journal(self.journal_path)
        return self._journal

    @property
    def complete(self) -> bool:
        return self._missing == 0

    def place(self, index: int, outcome: Trajectory | Rejected) -> Tally:
        """Settle document `index`, once."""
        assert self._outcomes[index] is None, "a document was settled twice"
        self._outcomes[index] = outcome
        self._missing -= 1
        numbered = self.documents[index]
        if isinstance(outcome, Rejected):
            return Tally(numbered.position, numbered.document.id, outcome.reason)
        return Tally(
            numbered.position, outcome.id, None,
            outcome.finish_reason, outcome.document_tokens, outcome.thinking_tokens,
        )  # fmt: skip

    def publish(self) -> None:
        """Write the complete chunk under a temporary name and link it to its own; the first writer wins."""
        assert self.complete
        rows = [outcome for outcome in self._outcomes if isinstance(outcome, Trajectory)]
        rejected = [
            [numbered.document.id, outcome.reason]
            for numbered, outcome in zip(self.documents, self._outcomes, strict=True)
            if isinstance(outcome, Rejected)
        ]
        schema = TRAJECTORY_SCHEMA.with_metadata({REJECTED: json.dumps(rejected)})
        table = pa.table([[getattr(row, name) for row in rows] for name in schema.names], schema=schema)
        temporary = temporary_beside(self.path)
        try:
            with open(temporary, "wb") as file:
                pq.write_table(table, file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
            link_exclusive(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        self.close()
        self.journal_path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def published(self) -> Iterator[Tally]:
        """What an earlier run published under this chunk's name, document by document.

        Raises DamagedError where the file cannot be read, InputError where it is about other documents.
        """
        columns = ["id", "text", "finish_reason", "document_tokens", "thinking_tokens"]
        try:
            table = pq.read_table(self.path, columns=columns)
            reasons: dict[str, str] = dict(json.loads(table.schema.metadata[REJECTED]))
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise DamagedError(
                f"{self.path}: cannot be read back ({type(error).__name__})",
                fix="delete it: its documents are generated again",
            ) from error
        rows = table.to_pylist()
        kept = [n for n in self.documents if n.document.id not in reasons]
        wanted = [(n.document.id, n.document.text) for n in kept]
        same = [(row["id"], row["text"]) for row in rows] == wanted
        if not same or len(kept) + len(reasons) != len(self.documents):
            raise InputError(
                f"{self.path}: holds other documents than the corpus now has in this place",
                fix="give the corpus as it was when the job began, or another thinking.output",
            )
        for numbered in self.documents:
            if (reason := reasons.get(numbered.document.id)) is not None:
                yield Tally(numbered.position, numbered.document.id, reason)
        for numbered, row in zip(kept, rows, strict=True):
            yield Tally(
                numbered.position, row["id"], None,
                row["finish_reason"], row["document_tokens"], row["thinking_tokens"],
            )  # fmt: skip


def link_exclusive(temporary: Path, final: Path) -> bool:
    """Give a finished file its name unless another writer was first; says whether this one won."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        return False
    fsync_folder(final.parent)
    return True
