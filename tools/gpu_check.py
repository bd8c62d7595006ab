"""`make gpu`: the one command on a GPU machine, in under 8 minutes.

Holds every op against float64, runs each twice for equal bits, watches for host synchronisation and memory,
then measures ours and every peer. Writes benchmark.json and benchmark.png, and appends what it found to
kernels/bench/RESULTS.md. Exits 1 with the failed lines if a check fails, 2 where no GPU is.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from clock import Deadline
    from conduct import Size
    from correctness import Check
    from record import Record

ROOT = Path(__file__).resolve().parents[1]
CORRECTNESS_S, CONDUCT_S, BENCHMARK_UNTIL_S = 150.0, 60.0, 420.0
BUDGET_MS = 100.0  # of timed runs for one measurement
RESULTS = ROOT / "kernels" / "bench" / "RESULTS.md"

type Op = tuple[str, str, Callable[..., object]]  # name, impl, function


@dataclass(frozen=True)
class Plan:
    """Where and what to check; the seconds that a part may begin something new in."""

    device: torch.device
    ops: Sequence[Op]
    size: "Size"
    output: Path
    results: Path
    correctness_s: float = CORRECTNESS_S
    conduct_s: float = CONDUCT_S
    benchmark_until_s: float = BENCHMARK_UNTIL_S


def public_ops(impls: Sequence[str]) -> list[Op]:
    """Every public op under every impl."""
    import tpt_kernels
    from session import OPS

    return [(name, impl, partial(getattr(tpt_kernels, name), impl=impl)) for name in OPS for impl in impls]


def run_checks(part: str, waiting: Iterable[Callable[[], "Check"]], deadline: "Deadline") -> list["Check"]:
    """Calls each in order until the deadline; how many were left is a check that was not run."""
    from correctness import Check

    done, left = [], 0
    for check in waiting:
        if deadline.passed:
            left += 1
            continue
        done.append(check())
        if done[-1].passed is False:
            print(line_of(done[-1]), flush=True)
    passed = sum(check.passed is True for check in done)
    print(f"{part}: {passed} of {len(done) + left} checks passed, {left} not begun", flush=True)
    return done + ([Check(f"{part}: {left} checks", None, deadline.reason)] if left else [])


def conduct_checks(plan: Plan) -> list[Callable[[], "Check"]]:
    """Memory first, since it is the one that nothing else would show."""
    from clock import Clock
    from conduct import check_memory, check_no_synchronisation, check_repetition, runs_of
    from correctness import Check

    checks: list[Callable[[], Check]] = []
    clock = Clock(plan.device, BUDGET_MS)
    for name, impl, op in plan.ops:
        if name == "linear_cross_entropy_sum" and plan.device.type == "cuda":
            checks.append(partial(check_memory, f"{name} [{impl}]", op, clock))
    for name, impl, op in plan.ops:
        run = runs_of({name: op}, plan.size, plan.device)[name]
        checks.append(partial(check_repetition, f"{name} [{impl}]", run))
        if plan.device.type == "cuda":
            checks.append(partial(check_no_synchronisation, f"{name} [{impl}]", run))
    return checks


def measure_record(plan: Plan, deadline: "Deadline") -> "Record":
    from bench_kernels import megatron_core
    from record import Record, this_place
    from session import OPS, Session, measure, shape_names

    session = Session(
        plan.device, OPS, shape_names(plan.device), BUDGET_MS, deadline, {"megatron-core": megatron_core}
    )
    ceilings, measurements = measure(session, lambda line: print(f"benchmark: {line}", flush=True))
    return Record(this_place(plan.device), ceilings, measurements)


def benchmark_checks(record: "Record", deadline: "Deadline") -> list["Check"]:
    """What of ours was begun and gave no figure that counts."""
    from correctness import Check

    return [
        Check(f"benchmark {m.op} {m.phase} {m.shape}: {m.contender}", False, m.reason)
        for m in record.measurements
        if m.contender.startswith("ours") and m.reason is not None and m.reason != deadline.reason
    ]


def line_of(check: "Check") -> str:
    word = {True: "passed", False: "FAILED", None: "not run"}[check.passed]
    return f"{word}: {check.name}: {check.detail}"


def section(checks: Sequence["Check"], record: "Record") -> str:
    """What is appended to RESULTS.md."""
    from table import as_markdown
    from targets import target_lines

    counted = {word: sum(c.passed is value for c in checks) for word, value in
               (("passed", True), ("failed", False), ("not run", None))}  # fmt: skip
    parts = [
        f"\n## {record.place.device}, {record.place.date[:10]}",
        "Checks: " + ", ".join(f"{count} {word}" for word, count in counted.items()) + ".",
    ]
    if notable := [line_of(c) for c in checks if c.passed is not True]:
        parts.append("\n".join(f"- {line}" for line in notable))
    if targets := target_lines(record):
        parts.append("\n".join(f"- {line}" for line in targets))
    return "\n\n".join([*parts, as_markdown(record)]) + "\n"


def run(plan: Plan) -> int:
    """All three parts; 0, or 1 where a check failed."""
    from clock import Deadline
    from correctness import checks as correctness_checks
    from plot import write_plot
    from record import write, write_json

    whole = Deadline.after(plan.benchmark_until_s)
    checks = run_checks(
        "correctness", correctness_checks(plan.ops, plan.device), Deadline.after(plan.correctness_s)
    )
    checks += run_checks("conduct", conduct_checks(plan), Deadline.after(plan.conduct_s))
    record = measure_record(plan, whole)
    checks += benchmark_checks(record, whole)
    write_json(plan.output / "benchmark.json", record)
    write_plot(plan.output / "benchmark.png", record)
    text = section(checks, record)
    write(plan.results, plan.results.read_text() + text)
    print(text)
    print(f"written: {plan.output / 'benchmark.json'}, {plan.output / 'benchmark.png'}, {plan.results}")
    failed = [check for check in checks if check.passed is False]
    for check in failed:
        print(line_of(check), file=sys.stderr)
    return 1 if failed else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "gpu", help="folder for JSON and plot")
    parser.add_argument("--results", type=Path, default=RESULTS, help="markdown file to append to")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("make gpu: no GPU on this machine; nothing was checked or measured", file=sys.stderr)
        return 2
    if str(ROOT / "tools") not in sys.path:
        sys.path.insert(0, str(ROOT / "tools"))
    from bench_kernels import add_paths

    add_paths()
    from conduct import LARGE

    device = torch.device("cuda")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    return run(Plan(device, public_ops(("triton", "auto")), LARGE, options.output, options.results))


if __name__ == "__main__":
    sys.exit(main())
