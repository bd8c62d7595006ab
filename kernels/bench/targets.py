"""What a run on a GPU is held to, and whether it got there: lines for RESULTS.md, never a failed check."""

from collections.abc import Iterator, Sequence

from record import Comparison, Record, comparisons
from trial import Measurement

# ms on an H200; its limits by the measured ceilings are 1.47 ms (6.3 GB) and 32.7 ms (25.8 TFLOP).
H200_MS = {"cross_entropy": 1.8, "linear_cross_entropy_sum": 37.0}
AUTO_RATIO = 1.03  # auto takes the fastest peer's time, within 3%
TRITON_RATIO = 1 / 0.6  # our own kernels have 60% of the fastest peer's rate at least


def target_lines(record: Record) -> list[str]:
    """One line a target that this run can answer, beginning with "met" or "missed"."""
    lines = [*_times(record), *_against_named_peers(record.measurements)]
    return lines + [line for c in comparisons(record.measurements) if (line := _attention(c))]


def _times(record: Record) -> Iterator[str]:
    if "H200" not in record.place.device:
        return
    for m in record.measurements:
        limit = H200_MS.get(m.op)
        if limit is None or m.shape != "8k" or m.contender != "ours auto":
            continue
        if m.milliseconds is None or not m.counts:
            continue
        yield f"{_word(m.milliseconds <= limit)}: {m.op} 8k {m.milliseconds:.2f} ms, target at most {limit}"


def _against_named_peers(measurements: Sequence[Measurement]) -> Iterator[str]:
    """linear_cross_entropy_sum is faster than Liger's Triton and torch's own."""
    times = {
        (m.shape, m.contender): m.milliseconds or 0.0
        for m in measurements
        if m.op == "linear_cross_entropy_sum" and m.counts
    }
    for (shape, contender), peer in times.items():
        mine = times.get((shape, "ours auto"))
        if mine is not None and contender.startswith(("liger", "torch")):
            yield (
                f"{_word(mine < peer)}: linear_cross_entropy_sum {shape} {mine:.2f} ms, "
                f"target under {contender}'s {peer:.2f} ms"
            )


def _attention(c: Comparison) -> str | None:
    limit = {"ours auto": AUTO_RATIO, "ours triton": TRITON_RATIO}.get(c.ours)
    if c.op != "attention" or limit is None or c.ratio is None:
        return None
    ratio = c.ratio if c.alternated is None else c.alternated
    return (
        f"{_word(ratio <= limit)}: {c.ours} attention {c.phase} {c.shape} takes {ratio:.2f} of "
        f"{c.fastest_peer}'s time, target {limit:.2f} at most"
    )


def _word(met: bool) -> str:
    return "met" if met else "missed"
