"""`tpt report PATH`: one HTML file about everything under a folder, or about one dataset."""

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


def report(path: Path, output: Path | None = None) -> ReportSummary:
    """Write the page about a folder or a dataset's prefix: static, no script, no network.

    It goes to `output`, by default FOLDER/report.html or PREFIX.report.html. The same files give the same
    bytes. Raises InputError where there is nothing to report, DamagedError for a damaged dataset's prefix.
    """
    whole_folder = path.is_dir()
    output = output or (path / REPORT if whole_folder else path.with_name(f"{path.name}.{REPORT}"))
    found = find(path)
    page = render(found, path if whole_folder else path.parent, path.resolve().name)
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
