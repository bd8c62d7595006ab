"""`make gpu`: the one command on a GPU machine, in under 8 minutes.

Holds every op against float64, runs each twice for equal bits, watches for host synchronisation and memory,
then measures ours and every peer. Writes benchmark.json and benchmark.png, and appends what it found to
kernels/bench/RESULTS.md; both are written anew after every shape. Exits 1 with the failed lines if a check
fails or one that is required was not run, 2 where no GPU is. Needs no package but torch and triton.
"""

import argparse
import faulthandler
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from check import Check, Waiting
    from clock import Deadline
    from conduct import Size
    from record import Record
    from trial import Measurement

ROOT = Path(__file__).resolve().parents[1]
PARTS_S = {"correctness": 150.0, "conduct": 60.0}  # within which a part may begin a check
GRACE_S = 45.0  # for the check begun last, and to import torch; then the part is killed
COMPILE_UNTIL_S, BENCHMARK_UNTIL_S, KILLED_AFTER_S = 360.0, 420.0, 475.0
BUDGET_MS = 100.0  # of timed runs for one measurement
RESULTS = ROOT / "kernels" / "bench" / "RESULTS.md"
LEFT_OUT = {"quack": "left out of make gpu, where its search for a configuration takes minutes"}

type Op = tuple[str, str, Callable[..., object]]  # name, impl, function


@dataclass(frozen=True)
class Plan:
    """Where to measure and write, and what gives each part's checks."""

    device: torch.device
    parts: Mapping[str, Callable[[], list["Check"]]]
    output: Path
    results: Path
    left_out: Mapping[str, str] = field(default_factory=lambda: LEFT_OUT)
    compile_until_s: float = COMPILE_UNTIL_S
    benchmark_until_s: float = BENCHMARK_UNTIL_S


def public_ops(impls: Sequence[str]) -> list[Op]:
    """Every public op under every impl."""
    import tpt_kernels
    from session import OPS

    return [(name, impl, partial(getattr(tpt_kernels, name), impl=impl)) for name in OPS for impl in impls]


def conduct_checks(ops: Sequence[Op], size: "Size", device: torch.device) -> list["Waiting"]:
    """Memory first, since it is the one that nothing else would show."""
    from check import Waiting
    from clock import Clock
    from conduct import check_memory, check_no_synchronisation, check_repetition, runs_of

    waiting = []
    gpu = device.type == "cuda"
    clock = Clock(device, BUDGET_MS)
    for name, impl, op in ops:
        title = f"{name} [{impl}]"
        if name == "linear_cross_entropy_sum" and gpu:
            waiting.append(Waiting(f"{title}: memory", partial(check_memory, title, op, clock)))
    for name, impl, op in ops:
        title = f"{name} [{impl}]"
        run = runs_of({name: op}, size, device)[name]
        waiting.append(Waiting(f"{title}: repeats to the bit", partial(check_repetition, title, run)))
        if gpu:
            check = partial(check_no_synchronisation, title, run)
            waiting.append(Waiting(f"{title}: no host synchronisation", check))
    return waiting


def run_part(part: str, ops: Sequence[Op], size: "Size", device: torch.device, file: Path) -> None:
    """One part's checks in this process, told to `file`."""
    from check import run_checks
    from clock import Clock, Deadline
    from correctness import checks as correctness_checks

    deadline = Deadline.after(PARTS_S[part])
    waiting = (
        conduct_checks(ops, size, device) if part == "conduct" else correctness_checks(ops, device)
    )  # fmt: skip
    with file.open("a") as lines:
        run_checks(waiting, deadline, Clock(device, BUDGET_MS).lost, lines)


def measure_record(
    plan: Plan, deadline: "Deadline", compiling: "Deadline", keep: Callable[["Record"], object]
) -> "Record":
    """The benchmark; `keep` is given the record so far after every shape."""
    from bench_kernels import megatron_core
    from record import Record, this_place
    from session import OPS, Session, measure, shape_names

    place = this_place(plan.device)
    session = Session(
        plan.device, OPS, shape_names(plan.device), BUDGET_MS, deadline, {"megatron-core": megatron_core},
        compiling, plan.left_out,
    )  # fmt: skip
    ceilings, measurements = measure(
        session,
        lambda line: print(f"benchmark: {line}", flush=True),
        lambda ceilings, measurements: keep(Record(place, ceilings, measurements)),
    )
    return Record(place, ceilings, measurements)


def benchmark_checks(measurements: Sequence["Measurement"]) -> list["Check"]:
    """What of ours was begun and gave no figure that counts."""
    from check import Check
    from clock import NOT_BEGUN

    return [
        Check(f"benchmark {m.op} {m.phase} {m.shape}: {m.contender}", False, m.reason)
        for m in measurements
        if m.contender.startswith("ours") and m.reason is not None and not m.reason.startswith(NOT_BEGUN)
    ]


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
    if notable := [c.line for c in checks if c.passed is not True]:
        parts.append("\n".join(f"- {line}" for line in notable))
    if targets := target_lines(record):
        parts.append("\n".join(f"- {line}" for line in targets))
    return "\n\n".join([*parts, as_markdown(record)]) + "\n"


def run(plan: Plan) -> int:
    """All three parts; 0, or 1 where a check failed or a required one was not run."""
    from clock import Deadline
    from plot import write_plot
    from record import write, write_json

    before = plan.results.read_text()  # first: a wrong path must not cost the run
    whole, compiling = (Deadline.after(s) for s in (plan.benchmark_until_s, plan.compile_until_s))
    checks = [check for part in plan.parts.values() for check in part()]

    def keep(record: "Record") -> str:
        write_json(plan.output / "benchmark.json", record)
        text = section([*checks, *benchmark_checks(record.measurements)], record)
        write(plan.results, before + text)
        return text

    record = measure_record(plan, whole, compiling, keep)
    print(keep(record))
    print(f"written: {plan.output / 'benchmark.json'}, {plan.results}")
    try:
        write_plot(plan.output / "benchmark.png", record)
        print(f"plot: {plan.output / 'benchmark.png'}")
    except ImportError as error:
        print(f"no plot: {error}")
    failed = [c for c in [*checks, *benchmark_checks(record.measurements)] if c.fails]
    for check in failed:
        print(check.line, file=sys.stderr)
    return 1 if failed else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "gpu", help="folder for JSON and plot")
    parser.add_argument("--results", type=Path, default=RESULTS, help="markdown file to append to")
    parser.add_argument("--part", nargs=2, metavar=("PART", "FILE"), help="one part's checks alone, to FILE")
    options = parser.parse_args(arguments)
    if not options.results.is_file():
        parser.error(f"--results: got {options.results}, expected a markdown file that exists")
    if not torch.cuda.is_available():
        print("make gpu: no GPU on this machine; nothing was checked or measured", file=sys.stderr)
        return 2
    if str(ROOT / "tools") not in sys.path:
        sys.path.insert(0, str(ROOT / "tools"))
    from bench_kernels import add_paths

    add_paths()
    from check import checks_apart
    from conduct import LARGE

    device = torch.device("cuda")
    if options.part is not None:
        run_part(options.part[0], public_ops(("triton", "auto")), LARGE, device, Path(options.part[1]))
        return 0
    # A measured kernel that hangs: the process ends with a traceback, and all until then has been written.
    faulthandler.dump_traceback_later(KILLED_AFTER_S, exit=True)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    parts = {
        part: partial(checks_apart, part, [sys.executable, __file__, "--part", part], seconds + GRACE_S)
        for part, seconds in PARTS_S.items()
    }
    return run(Plan(device, parts, options.output, options.results))


if __name__ == "__main__":
    sys.exit(main())
