"""The quickstart's own runner: a done stage is not done again, a changed or torn one is noticed."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from tpt_megatron.errors import InputError

RUN = Path(__file__).parents[2] / "examples/quickstart/run.py"
WRITER = """
import sys
from pathlib import Path
from tpt_megatron.artifact import manifest_of_files, write_manifest
folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
with open(folder.parent / "calls", "a") as calls:
    calls.write("x")
(folder / "file").write_text("whole")
write_manifest(folder / "manifest.json", manifest_of_files(folder, "test", {}))
print("made: 1 file")
"""


@pytest.fixture
def quickstart(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("quickstart_run", RUN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "quickstart_run", module)
    spec.loader.exec_module(module)
    return module


def test_a_done_stage_is_not_done_again(quickstart, tmp_path):
    target, calls = tmp_path / "out", tmp_path / "calls"
    stage = quickstart.Stage("make it", [sys.executable, "-c", WRITER, str(target)], [target])
    console = Console(quiet=True)
    quickstart.run(stage, tmp_path, console)
    quickstart.run(stage, tmp_path, console)
    assert calls.read_text() == "x"
    (target / "file").write_text("torn")  # another size than its manifest's
    quickstart.run(stage, tmp_path, console)
    assert calls.read_text() == "xx"
    other = quickstart.Stage("make it", [sys.executable, "-c", WRITER + "\n", str(target)], [target])
    with pytest.raises(InputError, match="made with other settings"):
        quickstart.run(other, tmp_path, console)


def test_a_failing_stage_stops_the_run_and_leaves_no_record(quickstart, tmp_path):
    stage = quickstart.Stage("fail", [sys.executable, "-c", "raise SystemExit(3)"], [])
    with pytest.raises(SystemExit) as caught:
        quickstart.run(stage, tmp_path, Console(quiet=True))
    assert caught.value.code == 3
    assert not (tmp_path / "stages").exists()
