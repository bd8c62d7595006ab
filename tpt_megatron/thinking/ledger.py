"""What a job has counted so far, and what it refused: the figures of its manifest and its summary."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tpt_megatron.artifact import write_text
from tpt_megatron.records import BadRow
from tpt_megatron.thinking.chunk import Tally


@dataclass(slots=True)
class Ledger:
    """Counts of one job: in = out + quarantined + pending at every moment."""

    documents_in: int = 0  # all rows of the corpus, bad ones too
    out: int = 0
    document_tokens: int = 0
    thinking_tokens: int = 0
    stopped: int = 0
    length_capped: int = 0
    refused: list[tuple[int, dict[str, Any]]] = field(default_factory=list)

    @property
    def settled(self) -> int:
        return self.out + len(self.refused)

    @property
    def counts(self) -> dict[str, int]:
        pending = self.documents_in - self.settled
        return {
            "documents_in": self.documents_in,
            "out": self.out,
            "quarantined": len(self.refused),
            "pending": pending,
        }

    def refuse(self, position: int, reason: str, *, id: str | None = None, bad: BadRow | None = None) -> None:
        """Count a row that goes to quarantine; `position` is its place in the corpus, from 1."""
        where = {"file": bad.file if bad else None, "line": bad.line if bad else None}
        self.refused.append((position, {**where, "position": position, "id": id, "reason": reason}))

    def add(self, tally: Tally) -> None:
        """Count a settled document."""
        if tally.rejected is not None:
            self.refuse(tally.position, tally.rejected, id=tally.id)
            return
        self.out += 1
        self.document_tokens += tally.document_tokens
        self.thinking_tokens += tally.thinking_tokens
        self.stopped += tally.finish_reason == "stop"
        self.length_capped += tally.finish_reason == "length"

    def about(self) -> Mapping[str, Any]:
        """The figures as the manifest holds them."""
        return {
            "counts": self.counts,
            "document_tokens": self.document_tokens,
            "thinking_tokens": self.thinking_tokens,
            "finish_reasons": {"stop": self.stopped, "length": self.length_capped},
        }

    def write_quarantine(self, path: Path) -> None:
        """One JSON line a refused row, in the order of the corpus; no file where nothing was refused."""
        if self.refused:
            rows = sorted(self.refused, key=lambda entry: entry[0])
            write_text(path, "".join(json.dumps(row) + "\n" for _, row in rows))
