"""`tpt report DIR`: one HTML file about everything under a folder."""

from dataclasses import dataclass
from pathlib import Path

from tpt_megatron.artifact import write_text
from tpt_megatron.report.find import find
from tpt_megatron.report.page import render

REPORT = "report.html"


@dataclass(frozen=True)
class ReportSummary:
    """What the page shows; `left_out` artifacts could not be read, the page says why."""

    output: Path
    runs: int
    datasets: int
    trajectories: int
    evaluations: int
    left_out: int
    megabytes: float  # of the page, 10^6 bytes


def report(folder: Path, output: Path | None = None) -> ReportSummary:
    """Write the page about `folder` to `output` (default FOLDER/report.html): static, no script, no network.

    The same folder gives the same bytes. Raises InputError where there is nothing to report.
    """
    output = output or folder / REPORT
    found = find(folder)
    page = render(found, folder)
    write_text(output, page)
    return ReportSummary(
        output=output,
        runs=len(found.runs),
        datasets=len(found.datasets),
        trajectories=len(found.trajectories),
        evaluations=len(found.evaluations),
        left_out=len(found.left_out),
        megabytes=len(page.encode()) / 1e6,
    )
