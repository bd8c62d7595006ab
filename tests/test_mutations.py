"""The planted bugs fit the kernels of today, and the runner says of a change what became of it.

`make test-mutations` runs the bugs themselves; here a package of one function stands for the kernels.
"""

import ast
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "mutations"))

from bug import OTHER_KINDS, REQUIRED_KINDS, Bug, PlantError, planted  # noqa: E402
from planting import judged, try_bug  # noqa: E402
from run import BUGS, main  # noqa: E402

KERNEL = "FACTOR = 2\n\n\ndef double(x):\n    return FACTOR * x\n"
TESTS = """
import subprocess, sys, time

def test_by_import():
    from tpt_kernels.kernel import double
    assert double(2) == 4

def test_by_a_process():
    code = "from tpt_kernels.kernel import double; assert double(2) == 4"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

def test_that_nothing_is_the_matter():
    from tpt_kernels.kernel import FACTOR
    time.sleep(0 if FACTOR == 2 else 60)
"""
BOTH = ("test_kernel.py::test_by_import", "test_kernel.py::test_by_a_process")
HARMLESS = Bug("written the other way", "scale", "kernel.py", "FACTOR * x", "x * FACTOR", BOTH)
HARMFUL = replace(HARMLESS, name="halved", new="x // FACTOR")


@pytest.fixture
def project(tmp_path):
    """A repository whose tpt_kernels has one function."""
    for folder in ("kernels/tpt_kernels", "tests/kernels"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\naddopts = '-q'\n")
    (tmp_path / "kernels/tpt_kernels/__init__.py").touch()
    (tmp_path / "kernels/tpt_kernels/kernel.py").write_text(KERNEL)
    (tmp_path / "tests/kernels/test_kernel.py").write_text(TESTS)
    return tmp_path


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_fits_the_source(bug):
    """Its text stands once in its file, what comes of it is Python, and the tests named for it exist."""
    source = (ROOT / "kernels" / "tpt_kernels" / bug.file).read_text()
    changed = planted(source, bug)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source)), "the change is in a comment"
    assert bug.kind in (*REQUIRED_KINDS, *OTHER_KINDS)
    assert bug.tests, "without tests pytest would run all"
    for test in bug.tests:
        file, _, case = test.partition("::")
        functions = ast.walk(ast.parse((ROOT / "tests" / "kernels" / file).read_text()))
        assert case.partition("[")[0] in {f.name for f in functions if isinstance(f, ast.FunctionDef)}


def test_the_bugs_cover_every_class():
    assert set(REQUIRED_KINDS) <= {bug.kind for bug in BUGS}
    assert len(BUGS) >= 20
    assert [name for name, count in Counter(bug.name for bug in BUGS).items() if count > 1] == []


def test_a_bug_whose_source_has_changed_is_named():
    for text, count in (("FACTOR *  x", 0), ("FACTOR", 2)):
        with pytest.raises(PlantError, match=f"halved: its text stands {count} times in kernel.py"):
            planted(KERNEL, replace(HARMFUL, old=text))


def test_a_harmless_change_escapes_and_fails_the_run(project, capsys):
    assert main([], root=project, bugs=[HARMFUL, HARMLESS]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 tests pass without a bug")
    assert lines[1].startswith("halved ")
    assert lines[1].endswith("caught by test_kernel.py::test_by_import")
    assert lines[2].startswith("written the other way ")
    assert "ESCAPED" in lines[2]
    assert lines[3] == "1 of 2 planted bugs were caught"
    assert (project / "kernels/tpt_kernels/kernel.py").read_text() == KERNEL, "planted in a copy only"


def test_a_run_of_caught_bugs_passes(project, capsys):
    by_process = replace(HARMFUL, name="halved elsewhere", tests=BOTH[1:])
    assert main(["--jobs", "2"], root=project, bugs=[HARMFUL, by_process]) == 0
    assert capsys.readouterr().out.endswith("2 of 2 planted bugs were caught\n")


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"new": "factor * x"}, "NameError: "),
        ({"new": "factor * x", "tests": BOTH[1:]}, "NameError: "),
        ({"old": "def double", "new": "def treble"}, "ImportError: cannot import name 'double'"),
        ({"new": "(FACTOR * x"}, "SyntaxError: "),
        ({"new": "1 // 0 * x"}, "ZeroDivisionError: "),
        ({"tests": ("test_kernel.py::test_gone",)}, "pytest ended with 4 without a test's failure: "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_change_that_does_not_run_is_not_caught(project, change, detail):
    outcome = try_bug(project, replace(HARMLESS, **change), timeout_s=60)
    assert (outcome.verdict, outcome.test) == ("broken", "")
    assert outcome.detail.startswith(detail)


def test_a_test_file_that_is_not_collected_catches_nothing(project):
    path = project / "tests/kernels/test_kernel.py"
    path.write_text("from tpt_kernels.kernel import FACTOR\nassert FACTOR == 2\n" + path.read_text())
    bug = replace(HARMLESS, old="FACTOR = 2", new="FACTOR = 3")
    outcome = try_bug(project, bug, timeout_s=60)
    assert outcome.verdict == "broken"
    assert "without a test's failure" in outcome.detail


def test_a_bug_that_hangs_is_not_caught(project):
    bug = replace(
        HARMLESS,
        old="FACTOR = 2",
        new="FACTOR = 3",
        tests=("test_kernel.py::test_that_nothing_is_the_matter",),
    )
    outcome = try_bug(project, bug, timeout_s=4)
    assert (outcome.verdict, outcome.detail) == ("timed out", "no result after 4 s")
    assert outcome.seconds < 30


def test_tests_that_fail_without_a_bug_are_named(project, capsys):
    (project / "kernels/tpt_kernels/kernel.py").write_text(KERNEL.replace("FACTOR = 2", "FACTOR = 5"))
    assert main([], root=project, bugs=[HARMLESS]) == 1
    assert "without a bug: caught test_kernel.py::test_by_import assert 10 == 4" in capsys.readouterr().err


def test_another_package_in_the_copy_s_place_is_refused(project, monkeypatch):
    """A package that python finds before PYTHONPATH would be tested in the copy's stead."""
    (project / "tests/kernels/tpt_kernels.py").touch()
    monkeypatch.setattr("planting.environment_of", lambda copy: {"PYTHONPATH": str(copy / "tests/kernels")})
    with pytest.raises(PlantError, match=r"imported from .*tests/kernels/tpt_kernels\.py, expected"):
        try_bug(project, HARMLESS, timeout_s=60)


@pytest.mark.parametrize(
    ("message", "verdict"),
    [
        ("assert 1 == 2", "caught"),
        ("AssertionError: out error 1e-2", "caught"),
        ("Failed: DID NOT RAISE <class 'RuntimeError'>", "caught"),
        ("tpt_kernels.testing.memory.OutOfBoundsError: load of ...", "caught"),
        ("tpt_kernels.testing.memory.RaceError: stored by two programs", "caught"),
        ("RuntimeError: shapes differ", "broken"),
        ("triton.runtime.errors.InterpreterError: NameError('x')", "broken"),
        ("AssertionError: Traceback\nTypeError: no", "broken"),
    ],
)
def test_what_counts_as_caught(message, verdict, tmp_path):
    report = tmp_path / "report.xml"
    text = message.replace("<", "&lt;").replace("\n", "&#10;").replace('"', "&quot;")
    report.write_text(f'<s><testcase classname="tests.a" name="b"><failure message="{text}"/></testcase></s>')
    assert judged(1, "", report, 1.0).verdict == verdict
    assert judged(2, "", report, 1.0).verdict == "broken"
    assert judged(0, "", report, 1.0).verdict == "escaped"


def test_the_command_line(project, capsys):
    assert main(["--only", "no bug has this"], root=project, bugs=[HARMLESS]) == 2
    assert "--only: got 'no bug has this'" in capsys.readouterr().err
    script = ROOT / "tests" / "mutations" / "run.py"
    done = subprocess.run([sys.executable, str(script), "--jobs", "x"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "invalid int value: 'x'" in done.stderr
