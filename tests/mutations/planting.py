"""Plants a bug in a copy of the kernels and runs the tests named for it there.

A bug counts as caught only where a test's assertion fails, or a check of the interpreter raises. A change
that does not load, or raises a NameError, says nothing about the tests; nor does one that makes them hang.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from bug import Bug, PlantError, planted

COPIED = ("kernels/tpt_kernels", "tests/kernels", "pyproject.toml")
# What a failure's message begins with: pytest leaves the type out where it explains the assertion itself.
CATCHES = re.compile(r"assert |([\w.]+\.)?(AssertionError|Failed|OutOfBoundsError|RaceError)\b")
# In a message of any type, since a worker process's error is part of its test's assertion.
BREAKS = re.compile(r"\b(Syntax|Indentation|Import|ModuleNotFound|Name|UnboundLocal|Attribute|Type)Error\b")


@dataclass(frozen=True)
class Outcome:
    """verdict: "caught", "escaped", "broken" (see detail) or "timed out"; test: the one that failed."""

    verdict: str
    seconds: float
    test: str = ""
    detail: str = ""


def try_bug(root: Path, bug: Bug, timeout_s: float) -> Outcome:
    """What the bug's tests make of it. PlantError where the source has changed."""
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        copy = Path(folder)
        copy_sources(root, copy)
        target = source_of(copy, bug)
        target.write_text(planted(target.read_text(), bug))
        return run_tests(copy, bug.tests, timeout_s)


def try_without_bug(root: Path, tests: Sequence[str], timeout_s: float) -> Outcome:
    """The tests on an unchanged copy: "escaped" is what must come back."""
    with tempfile.TemporaryDirectory(prefix="unplanted-") as folder:
        copy_sources(root, Path(folder))
        return run_tests(Path(folder), tests, timeout_s)


def source_of(root: Path, bug: Bug) -> Path:
    return root / "kernels" / "tpt_kernels" / bug.file


def copy_sources(root: Path, copy: Path) -> None:
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(root / name, copy / name)


def run_tests(copy: Path, tests: Sequence[str], timeout_s: float) -> Outcome:
    """Up to the first failure, in the interpreter, with the copy's tpt_kernels."""
    environment = environment_of(copy)
    require_copy(copy, environment)
    report = copy / "report.xml"
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command += [f"tests/kernels/{test}" for test in tests]
    begin = time.monotonic()
    process = subprocess.Popen(
        command, cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the ranks that a test started, too
        process.communicate()
        return Outcome("timed out", time.monotonic() - begin, detail=f"no result after {timeout_s:g} s")
    return judged(process.returncode, output, report, time.monotonic() - begin)


def environment_of(copy: Path) -> dict[str, str]:
    """No GPU to be seen, so that kernels are interpreted; PYTHONPATH comes before what is installed."""
    return {
        **os.environ,
        "PYTHONPATH": str(copy / "kernels"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "TRITON_INTERPRET": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HIP_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }


def require_copy(copy: Path, environment: Mapping[str, str]) -> None:
    """PlantError unless `import tpt_kernels` takes the copy: another one would let every bug escape."""
    code = "import importlib.util; print(importlib.util.find_spec('tpt_kernels').origin)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=copy, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    expected = copy / "kernels" / "tpt_kernels" / "__init__.py"
    if Path(found).resolve() != expected.resolve():
        raise PlantError(f"tpt_kernels is imported from {found}, expected {expected}; uninstall the former")


def judged(returncode: int, output: str, report: Path, seconds: float) -> Outcome:
    """The outcome of a run of pytest, from its exit status and its report."""
    if returncode == 0:
        return Outcome("escaped", seconds)
    for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
        fault = case.find("failure")
        if returncode == 1 and fault is not None:
            message = fault.get("message", "")
            lines = message.splitlines() or [""]
            if CATCHES.match(message) and not BREAKS.search(message):
                test = f"{case.get('classname', '').rpartition('.')[2]}.py::{case.get('name')}"
                return Outcome("caught", seconds, test, lines[0])
            said = next((line for line in lines if BREAKS.search(line)), lines[0])
            return Outcome("broken", seconds, detail=said.strip())
    tail = " / ".join(line for line in output.splitlines()[-6:] if line.strip())
    return Outcome(
        "broken", seconds, detail=f"pytest ended with {returncode} without a test's failure: {tail}"
    )
