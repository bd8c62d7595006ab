"""The compile-only gate: every committed configuration compiled for every target, with no GPU.

    python kernels/bench/resources.py [--target sm_90] [--only "attention forward"] [--json FILE] [--jobs N]

Prints a table of registers, spills, shared memory, occupancy and instructions, then a line for each breach.
Ends with 0 where there is none, 1 where there are some or nothing was compiled, 2 on a wrong command line.
Triton keeps what it has compiled, so that a second run is quick; TRITON_ALWAYS_COMPILE=1 compiles anew.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from compilation import Compilation
from limits import LIMITS
from processes import reports
from report import Report

COLUMNS = (
    *("target", "kernel", "registers", "spills", "shared KiB", "occupancy (floor)", "matrix instructions"),
    *("wide loads", "atomics", "compile s", "MFLOP", "KiB", "FLOP/byte", "breaches"),
)
TEXT_COLUMNS = ("target", "kernel", "spills", "matrix instructions", "atomics")


def main(arguments: Sequence[str], configurations: Callable[[str], Sequence[Compilation]]) -> int:
    """Run the gate over `configurations` of each target; returns the exit code."""
    options = _parse(arguments)
    compilations = [
        compilation
        for target in options.target or LIMITS
        for compilation in configurations(target)
        if options.only in compilation.label
    ]
    if not compilations:
        print("nothing was compiled: no configuration of these targets has this name", file=sys.stderr)
        return 1
    done: dict[int, Report] = {}
    for index, report in reports(compilations, jobs=options.jobs):
        done[index] = report
        line = f"{len(done)}/{len(compilations)} {report.label} on {report.target}: {report.compile_s:.1f} s"
        print(line, file=sys.stderr, flush=True)
    ordered = [done[index] for index in range(len(compilations))]
    print(table(ordered))
    breaches = [breach for report in ordered for breach in report.breaches]
    seconds = sum(report.compile_s for report in ordered)
    print(f"\n{len(ordered)} configurations, {len(breaches)} breaches, {seconds:.0f} s of compiling")
    for breach in breaches:
        print(breach)
    if options.json:
        _write_json(options.json, ordered)
    return 1 if breaches else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compile every kernel for every target and check it.")
    parser.add_argument(
        "--target", action="append", choices=list(LIMITS), help="may be repeated; all targets"
    )
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="kernels with this in their label")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the reports here")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes; one a core")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs: got {options.jobs}, expected at least 1")
    return options


def table(reports: Sequence[Report]) -> str:
    """One line a report, columns aligned: text to the left, numbers to the right."""
    rows = [list(COLUMNS), *(_row(report) for report in reports)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = [
        "  ".join(
            cell.ljust(width) if name in TEXT_COLUMNS else cell.rjust(width)
            for cell, width, name in zip(row, widths, COLUMNS, strict=True)
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    units = ", ".join(f"{limits.unit} on {target}" for target, limits in LIMITS.items())
    return "\n".join([*lines, f"occupancy: {units}; MFLOP, KiB and FLOP/byte: of a tile, estimated"])


def _row(report: Report) -> list[str]:
    facts, estimate = report.facts, ["-", "-", "-"]
    if report.flop and report.bytes:
        intensity = report.flop / report.bytes
        estimate = [f"{report.flop / 1e6:.1f}", f"{report.bytes / 1024:.0f}", f"{intensity:.0f}"]
    end = [f"{report.compile_s:.1f}", *estimate, str(len(report.breaches))]
    if facts is None:
        return [report.target, report.label, "-", "not compiled", "-", "-", "-", "-", "-", *end]
    return [
        report.target,
        report.label,
        str(facts.registers),
        ", ".join(f"{count} {kind}" for kind, count in facts.spills.items()) or "0",
        f"{facts.shared_bytes / 1024:.1f}",
        f"{facts.occupancy:g} ({report.min_occupancy})",
        ", ".join(f"{count} {kind}" for kind, count in sorted(facts.matrix.items())) or "none",
        f"{facts.wide_loads}/{facts.loads}",
        ", ".join(f"{count} {kind}" for kind, count in sorted(facts.atomics.items())) or "0",
        *end,
    ]


def _write_json(path: Path, reports: Sequence[Report]) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        json.dump([asdict(report) for report in reports], file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


if __name__ == "__main__":
    from configurations import configurations  # loads torch, 2 s that the tests' own kernels do without

    sys.exit(main(sys.argv[1:], configurations))
