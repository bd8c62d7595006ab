"""From runs to rates, ratios and verdicts. MB are 10^6 bytes of the documents' UTF-8 text."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from bench_data.cost import Cost
from bench_data.pipelines import BARE, DATASETS, DATATROVE, FAST, OURS

SMALLEST_SHARE_OF_BARE, SMALLEST_SHARE_OF_FAST, SMALLEST_LEAD = 0.6, 1.0, 30.0
LARGEST_PEAK_MB = 600.0


@dataclass(frozen=True)
class Row:
    """One pipeline on one input, the medians of its runs."""

    name: str
    size: int  # MB of JSONL, as the input is called
    text_mb: float
    runs: int
    cpu_s: float
    start_cpu_s: float  # of the same command on the shortest input
    total: float  # MB per CPU-second
    marginal: float | None  # the same without start-up; None where the runs are too short to tell
    wall: float | None  # MB per second; None of a bare encoder, which measures its CPU alone
    peak_mb: float
    largest_rss_mb: float


@dataclass(frozen=True)
class Verdict:
    """A target, and whether this run reached it."""

    text: str
    passed: bool


def row(
    name: str, size: int, text_mb: float, costs: Sequence[Cost], start_mb: float, starts: Sequence[Cost]
) -> Row:
    """Start-up is the same command on a short input, whose text is taken out as well as its CPU."""
    cpu_s, start_cpu_s = (median(cost.cpu_s for cost in runs) for runs in (costs, starts))
    return Row(
        name=name,
        size=size,
        text_mb=text_mb,
        runs=len(costs),
        cpu_s=cpu_s,
        start_cpu_s=start_cpu_s,
        total=text_mb / cpu_s,
        marginal=(text_mb - start_mb) / (cpu_s - start_cpu_s) if cpu_s > start_cpu_s else None,
        wall=text_mb / median(cost.wall_s for cost in costs),
        peak_mb=max(cost.peak_mb for cost in costs),
        largest_rss_mb=max(cost.largest_rss_mb for cost in costs),
    )


def bare_row(name: str, size: int, measured: Sequence[Mapping[str, float]], costs: Sequence[Cost]) -> Row:
    """A bare encoder measures itself: reading and start-up are no part of it."""
    text_mb, cpu_s = measured[0]["megabytes"], median(run["cpu_s"] for run in measured)
    rate = text_mb / cpu_s
    peak, rss = max(cost.peak_mb for cost in costs), max(cost.largest_rss_mb for cost in costs)
    return Row(name, size, text_mb, len(costs), cpu_s, 0.0, rate, rate, None, peak, rss)


def verdicts(rows: Iterable[Row], identical: Mapping[str, bool]) -> list[Verdict]:
    """Every target that these rows can decide; peers of the slice are held against each size of ours."""
    rows = list(rows)
    rates = {(row.name, row.size): row.marginal for row in rows if row.marginal is not None}
    out = []
    for mine in (row for row in rows if row.name == OURS):
        bare = [rates[name, mine.size] for name in BARE if (name, mine.size) in rates]
        slow = {row.name: row.marginal for row in rows if row.name in (DATATROVE, DATASETS)}
        wanted = [("the bare encoder", max(bare, default=None), SMALLEST_SHARE_OF_BARE)]
        wanted.append((FAST, rates.get((FAST, mine.size)), SMALLEST_SHARE_OF_FAST))
        wanted += [(name, rate, SMALLEST_LEAD) for name, rate in slow.items()]
        for name, rate, least in wanted:
            if rate and mine.marginal:
                ratio = mine.marginal / rate
                text = f"{mine.size} MB: {ratio:.2f} of {name}'s rate, wanted {least:g}"
                out.append(Verdict(text, ratio >= least))
        text = f"{mine.size} MB: peak {mine.peak_mb:.0f} MB, wanted under {LARGEST_PEAK_MB:.0f}"
        out.append(Verdict(text, mine.peak_mb < LARGEST_PEAK_MB))
    return out + [Verdict(f".bin and .idx are those of {name}", same) for name, same in identical.items()]


def render(rows: Iterable[Row]) -> str:
    """The table as text: rates are MB of text a second."""
    heads = (
        "pipeline", "input", "runs", "CPU s", "start-up", "MB/CPU-s", "marginal", "MB/s wall", "peak MB",
        "RSS MB",
    )  # fmt: skip
    body = [
        (
            row.name, f"{row.size} MB", str(row.runs), f"{row.cpu_s:.2f}", f"{row.start_cpu_s:.2f}",
            f"{row.total:.1f}", _rate(row.marginal), _rate(row.wall),
            f"{row.peak_mb:.0f}", f"{row.largest_rss_mb:.0f}",
        )
        for row in rows
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(heads, *body, strict=True)]

    def line(cells: Sequence[str]) -> str:
        pairs = list(zip(cells, widths, strict=True))
        return "  ".join([pairs[0][0].ljust(pairs[0][1]), *(cell.rjust(width) for cell, width in pairs[1:])])

    return "\n".join(map(line, (heads, *body)))


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def slopes(rows: Iterable[Row]) -> list[str]:
    """The rate of what a longer input has more than a shorter one: free of all that the start-up may miss."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row.name, []).append(row)
    out = []
    for name, sizes in by_name.items():
        sizes.sort(key=lambda row: row.size)
        for first, second in pairwise(sizes):
            cpu_s = second.cpu_s - first.cpu_s
            rate = _rate((second.text_mb - first.text_mb) / cpu_s if cpu_s > 0 else None)
            out.append(f"from {first.size} to {second.size} MB: {name} {rate} MB/CPU-s")
    return out


def json_lines(rows: Iterable[Row], about: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{**about, **asdict(row)} for row in rows]
