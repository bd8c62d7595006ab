"""Checks: what is waiting, what came out, and a part of them run in a process of its own under a time limit.

A kernel may hang, or kill its process' CUDA context; what was found before then is kept in a file of lines.
"""

import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from clock import Deadline
from trial import explain, refusals

WORDS = {True: "passed", False: "FAILED", None: "NOT RUN"}


@dataclass(frozen=True)
class Check:
    """passed None: not run, and `detail` says why; `required`: then the whole run has failed."""

    name: str
    passed: bool | None
    detail: str
    required: bool = False

    @property
    def fails(self) -> bool:
        return self.passed is False or (self.passed is None and self.required)

    @property
    def line(self) -> str:
        return f"{WORDS[self.passed]}: {self.name}: {self.detail}"


@dataclass(frozen=True)
class Waiting:
    """A check to be called."""

    name: str
    call: Callable[[], Check]
    required: bool = False


def run_checks(
    waiting: Sequence[Waiting], deadline: Deadline, lost: Callable[[], str | None], file: TextIO
) -> None:
    """Calls each in order, until the deadline or until `lost` gives a reason; tells `file` all in lines."""

    def tell(kind: str, **facts: object) -> None:
        file.write(json.dumps({"kind": kind} | facts) + "\n")
        file.flush()

    for one in waiting:
        tell("waiting", name=one.name, required=one.required)
    for one in waiting:
        if deadline.passed:
            return tell("stopped", reason=deadline.reason)
        tell("begun", name=one.name)
        try:
            check = one.call()
        except refusals() as error:
            check = Check(one.name, False, explain(error))
        check = replace(check, name=one.name, required=one.required)
        tell("done", **asdict(check))
        if check.passed is False:
            print(check.line, flush=True)
            if reason := lost():
                return tell("stopped", reason=reason)
    return None


def found_checks(part: str, lines: Sequence[str], ended: str) -> list[Check]:
    """What `run_checks` told: every check it called, each required one that it did not, and how many others.

    ended: how its process ended, the fate of a check that was begun and gave nothing.
    """
    told: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith("\n")]
    done = {t["name"]: Check(t["name"], t["passed"], t["detail"], t["required"])
            for t in told if t["kind"] == "done"}  # fmt: skip
    for name in (t["name"] for t in told if t["kind"] == "begun" and t["name"] not in done):
        done[name] = Check(name, False, f"gave no result: {ended}")
    reason = next((t["reason"] for t in told if t["kind"] == "stopped"), f"not begun: {ended}")
    waiting = [t for t in told if t["kind"] == "waiting"]
    left = [t for t in waiting if t["name"] not in done]
    passed = sum(check.passed is True for check in done.values())
    print(f"{part}: {passed} of {len(waiting)} checks passed, {len(left)} not begun", flush=True)
    found = [*done.values(), *(Check(t["name"], None, reason, required=True) for t in left if t["required"])]
    if others := sum(not t["required"] for t in left):
        found.append(Check(f"{part}: {others} checks", None, reason))
    if not waiting:
        found.append(Check(part, False, f"told of no check: {ended}"))
    return found


def checks_apart(part: str, command: Sequence[str], timeout_s: float) -> list[Check]:
    """The checks of `command` FILE, a process that calls `run_checks` on FILE, killed after `timeout_s`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checks.jsonl"
        file.touch()
        try:
            code = subprocess.run([*command, str(file)], timeout=timeout_s, check=False).returncode
            ended = f"its process ended with exit code {code}"
        except subprocess.TimeoutExpired:
            ended = f"its process was killed after {timeout_s:.0f} s"
        return found_checks(part, file.read_text().splitlines(keepends=True), ended)
