"""What became of a dataset's rows, as its manifest counts them, and whether its files say the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tpt_megatron.data.indexed import IndexedDataset
from tpt_megatron.data.layout import HEADER, PARTS_DTYPE, dataset_file
from tpt_megatron.report.facts import ROWS_PER_BATCH, fact, optional_fact, read_batches
from tpt_megatron.report.lineage import LENGTHS, Group, Lineage


@dataclass(frozen=True)
class Counts:
    """rows = sequences + quarantined + all of `left_out`; None where an older manifest does not say."""

    sequences: int
    tokens: int
    document_tokens: int
    thinking_tokens: int
    rows: int | None
    quarantined: int | None
    left_out: Mapping[str, int] | None  # by reason
    cut: Mapping[str, int]  # by reason: sequences that are in, with a shortened thought
    plan: Mapping[str, float]  # of best_fit's packing
    text_bytes: int | None
    by_source: Mapping[str, Mapping[str, int]]

    @property
    def totals(self) -> Mapping[str, int]:
        return {
            "sequences": self.sequences, "tokens": self.tokens,
            "document_tokens": self.document_tokens, "thinking_tokens": self.thinking_tokens,
        }  # fmt: skip

    @property
    def accounted(self) -> int | None:
        """The rows whose fate is told."""
        if self.quarantined is None or self.left_out is None:
            return None
        return self.sequences + self.quarantined + sum(self.left_out.values())


def read_counts(about: Mapping[str, Any], path: Path) -> Counts:
    """The counts of the manifest at `path`, whose facts are `about`; InputError for a count that is none."""

    def table(key: str) -> dict[str, Any] | None:
        return optional_fact(about, key, dict, path)

    def numbers(key: str) -> dict[str, int] | None:
        found = table(key)
        return found and {name: fact(found, name, int, path) for name in found}

    plan = table("counts.plan") or {}
    sources = table("counts.by_source") or {}
    return Counts(
        sequences=fact(about, "counts.sequences", int, path),
        tokens=fact(about, "counts.tokens", int, path),
        document_tokens=fact(about, "counts.document_tokens", int, path),
        thinking_tokens=fact(about, "counts.thinking_tokens", int, path),
        rows=optional_fact(about, "counts.in", int, path),
        quarantined=optional_fact(about, "counts.quarantined", int, path),
        left_out=numbers("counts.left_out"),
        cut=numbers("counts.cut") or {},
        plan={name: value for name, value in plan.items() if isinstance(value, int | float)},
        text_bytes=optional_fact(about, "counts.text_bytes", int, path),
        by_source={source: fact(sources, source, dict, path) for source in sources},
    )


def disagreements(
    counts: Counts, lineage: Lineage | None, lineage_path: Path, tokens: IndexedDataset | None
) -> tuple[str, ...]:
    """A sentence for each count that two parts of the dataset tell differently."""
    told: list[tuple[str, int, str, int]] = []  # what, the manifest's number, who else counts it, theirs
    if counts.rows is not None and counts.accounted is not None:
        told.append(("rows in", counts.rows, "sequences, quarantine and left out", counts.accounted))
    if lineage is not None:
        by_source = {own.value: own for own in lineage.fields[0].groups} if lineage.fields else {}
        for where, said, found in (
            ("", counts.totals, lineage.whole),
            *((f" of {source}", own, by_source.get(source)) for source, own in counts.by_source.items()),
        ):
            for what, number in _measured(found).items() if found else ():
                told += [(f"{what}{where}", said[what], "the lineage", number)] if what in said else []
    if tokens is not None:
        told.append(("sequences", counts.sequences, "the index", tokens.num_sequences))
        told.append(("tokens", counts.tokens, "the index", tokens.num_tokens))
    out = [f"{what}: the manifest says {a:,}, {who} {b:,}" for what, a, who, b in told if a != b]
    if lineage is not None and tokens is not None and not out and (rows := _misplaced(lineage_path, tokens)):
        out.append(f"{rows:,} rows of the lineage tell other lengths than the index and the parts")
    return tuple(out)


def _measured(group: Group) -> dict[str, int]:
    document, thinking = group.document.total, group.thinking.total
    return {
        "sequences": group.sequences, "tokens": document + thinking,
        "document_tokens": document, "thinking_tokens": thinking,
    }  # fmt: skip


def _misplaced(lineage: Path, tokens: IndexedDataset) -> int:
    """Rows whose lengths are not those of their sequence.

    The index is read in pieces, not mapped: touched pages of a mapping count as memory, 16 bytes a row.
    """
    wrong = first = 0
    for batch in read_batches(lineage, LENGTHS, ROWS_PER_BATCH):
        document, thinking = (batch.column(name).to_numpy() for name in LENGTHS)
        offset = HEADER.size + 4 * first
        lengths = np.fromfile(dataset_file(tokens.prefix, "idx"), "<i4", len(batch), offset=offset)
        offset = PARTS_DTYPE.itemsize * first
        parts = np.fromfile(dataset_file(tokens.prefix, "parts"), PARTS_DTYPE, len(batch), offset=offset)
        thought = parts["thinking_end"] - parts["thinking_start"]
        wrong += int(((document + thinking != lengths) | (thinking != thought)).sum())
        first += len(batch)
    return wrong
