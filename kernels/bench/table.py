"""The record as tables of markdown, aligned so that they read well in a terminal too."""

from collections.abc import Sequence

from record import Comparison, Record, comparisons
from trial import Measurement

LEFT = ("op", "phase", "shape", "contender", "fastest peer", "reason")  # columns of words


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, its columns padded to their widest cell."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    left = [name in LEFT for name in header]

    def line(cells: Sequence[str]) -> str:
        padded = (
            c.ljust(w) if is_left else c.rjust(w) for c, w, is_left in zip(cells, widths, left, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = " | ".join(
        "-" * w if is_left else "-" * (w - 1) + ":" for w, is_left in zip(widths, left, strict=True)
    )
    return "\n".join([line(header), f"| {rule} |", *map(line, rows)])


def measured_table(measurements: Sequence[Measurement]) -> str:
    """What has a figure, the fastest of each op, phase and shape first; the rate is in the unit beside it."""
    groups: dict[tuple[str, str, str], list[Measurement]] = {}
    for m in measurements:
        if m.milliseconds is not None:
            groups.setdefault((m.op, m.shape, m.phase), []).append(m)
    rows = [
        _measured_row(m)
        for group in groups.values()
        for m in sorted(group, key=lambda m: (not m.counts, m.milliseconds))
    ]
    header = ("op", "shape", "phase", "contender", "ms", "rate", "unit", "of ceiling", "peak GB", "setup ms")
    return aligned(header, rows)


def _measured_row(m: Measurement) -> tuple[str, ...]:
    assert m.milliseconds is not None
    assert m.rate is not None
    return (
        m.op, m.shape, m.phase, m.contender + ("" if m.counts else " (see below)"), f"{m.milliseconds:.3f}",
        f"{m.rate:.3g}", m.unit or "", "" if m.fraction is None else f"{m.fraction:.0%}",
        "n/a" if m.peak_bytes is None else f"{m.peak_bytes / 1e9:.2f}",
        "" if m.setup_ms is None else f"{m.setup_ms:.1f}",
    )  # fmt: skip


def reasons_table(measurements: Sequence[Measurement]) -> str:
    """Every contender without a figure that counts, once for each op and reason, with the shapes."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for m in measurements:
        if m.reason is not None:
            where = found.setdefault((m.op, m.contender, m.reason), [])
            if m.shape not in where:
                where.append(m.shape)
    rows = [(op, contender, ", ".join(shapes), reason.replace("|", "/"))
            for (op, contender, reason), shapes in found.items()]  # fmt: skip
    return aligned(("op", "contender", "shape", "reason"), rows) if rows else "Every contender ran."


def comparison_table(found: Sequence[Comparison]) -> str:
    """Ours beside the fastest peer; a ratio is our time over the peer's, `in turn` of both timed again."""
    rows = [
        (
            c.op, c.shape, c.phase, c.ours, f"{c.milliseconds:.3f}", c.fastest_peer or "none ran",
            "" if c.peer_milliseconds is None else f"{c.peer_milliseconds:.3f}",
            "" if c.ratio is None else f"{c.ratio:.2f}",
            "" if c.alternated is None else f"{c.alternated:.2f}",
        )
        for c in found
    ]  # fmt: skip
    header = ("op", "shape", "phase", "contender", "ms", "fastest peer", "its ms", "ratio", "in turn")
    return aligned(header, rows)


def as_markdown(record: Record) -> str:
    """The whole record, without a heading of its own."""
    place, ceilings = record.place, record.ceilings
    return "\n\n".join(
        (
            f"{place.device}, torch {place.torch}, triton {place.triton}, {place.date}. Measured ceilings: "
            f"{ceilings.teraflops:.3g} TFLOP/s (matrix product), {ceilings.terabytes:.3g} TB/s (copy).",
            measured_table(record.measurements),
            "Ours beside the fastest peer (our time over its time, below 1 is faster):",
            comparison_table(comparisons(record.measurements)),
            "Not measured, or not counted:",
            reasons_table(record.measurements),
        )
    )
