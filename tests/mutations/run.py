"""Plants each bug of the lists in a copy of the kernels and exits 1 unless the tests catch every one.

`python tests/mutations/run.py`, or `make test-mutations`: minutes on two cores, no GPU. The same tests have
to pass on an unchanged copy first.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from attention_bugs import ATTENTION_BUGS
from bug import Bug, PlantError, planted
from loss_bugs import LOSS_BUGS
from planting import Outcome, copy_sources, source_of, try_bug, try_without_bug

ROOT = Path(__file__).parents[2]
BUGS = (*ATTENTION_BUGS, *LOSS_BUGS)


def main(arguments: Sequence[str], root: Path = ROOT, bugs: Sequence[Bug] = BUGS) -> int:
    """0: all caught. 1: one was not, or a test fails without a bug. 2: no bug was chosen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="", help="bugs whose name or kind has this in it")
    parser.add_argument("--jobs", type=int, default=1, help="bugs tried at the same time")
    parser.add_argument("--timeout-s", type=float, default=300.0, help="for the tests of one bug")
    options = parser.parse_args(arguments)
    chosen = [bug for bug in bugs if options.only in bug.name or options.only in bug.kind]
    if not chosen:
        print(f"--only: got {options.only!r}, which is in no bug's name or kind", file=sys.stderr)
        return 2
    try:
        # One copy first, so that a source that is being edited does not change between two bugs.
        with tempfile.TemporaryDirectory(prefix="sources-") as folder:
            copy_sources(root, Path(folder))
            require_plants(Path(folder), chosen)
            return report(Path(folder), chosen, options.jobs, options.timeout_s)
    except PlantError as error:
        print(error, file=sys.stderr)
        return 1


def require_plants(root: Path, bugs: Sequence[Bug]) -> None:
    """PlantError for the first bug that no longer fits the source: known before the tests, not after."""
    for bug in bugs:
        planted(source_of(root, bug).read_text(), bug)


def report(root: Path, bugs: Sequence[Bug], jobs: int, timeout_s: float) -> int:
    """Prints the table row by row. PlantError as try_bug."""
    tests = list(dict.fromkeys(test for bug in bugs for test in bug.tests))
    unplanted = try_without_bug(root, tests, 4 * timeout_s)
    if unplanted.verdict != "escaped":
        print(f"without a bug: {unplanted.verdict} {unplanted.test} {unplanted.detail}", file=sys.stderr)
        return 1
    print(f"{len(tests)} tests pass without a bug  {unplanted.seconds:.1f} s", flush=True)
    widths = [
        max(len(name) for name in names) for names in zip(*((b.name, b.kind) for b in bugs), strict=True)
    ]
    caught = 0
    with ThreadPoolExecutor(jobs) as executor:
        outcomes = executor.map(lambda bug: try_bug(root, bug, timeout_s), bugs)
        for bug, outcome in zip(bugs, outcomes, strict=True):
            caught += outcome.verdict == "caught"
            print(row(bug, outcome, widths), flush=True)
    print(f"{caught} of {len(bugs)} planted bugs were caught")
    return 0 if caught == len(bugs) else 1


def row(bug: Bug, outcome: Outcome, widths: Sequence[int]) -> str:
    found = f"caught by {outcome.test}" if outcome.verdict == "caught" else outcome.verdict.upper()
    why = "" if outcome.verdict == "caught" else f"  {outcome.detail}"
    return f"{bug.name:{widths[0]}}  {bug.kind:{widths[1]}}  {outcome.seconds:5.1f} s  {found}{why}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
