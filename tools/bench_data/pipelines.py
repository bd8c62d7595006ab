"""The pipelines that the benchmark runs, ours and its peers, each as a command on one JSONL file."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
BUILDER = HERE.parents[1] / "tests" / "data" / "megatron_builder.py"
# One thread a process, as training's own commands have it; gigatoken takes no notice inside of Megatron-LM.
ENVIRONMENT = ("OMP_NUM_THREADS=1", "TOKENIZERS_PARALLELISM=false", "HF_HUB_OFFLINE=1")
OURS, TWO_WORKERS = "tpt pack", "tpt pack, 2 workers"
FAST, CLASSIC = "preprocess_data_fast", "preprocess_data"
BARE = ("gigatoken", "fastokens")
DATATROVE, DATASETS = "datatrove", "datasets"


@dataclass(frozen=True)
class Pipeline:
    """`command(input, folder)` reads a JSONL file and writes below an empty folder."""

    name: str
    command: Callable[[Path, Path], list[str]]
    slow: bool = False  # 1 to 3 MB/s: measured on the slice
    dataset: str = ""  # its .bin and .idx are folder/dataset.*; "": none that ours could equal

    @property
    def bare(self) -> bool:
        """An encoder alone, which prints what it measured of itself."""
        return self.name in BARE


@dataclass(frozen=True)
class Skipped:
    """A pipeline that cannot run here, and why."""

    name: str
    reason: str


def pipelines(tokenizer: Path, megatron_lm: Path | None, peers_python: str) -> Iterator[Pipeline | Skipped]:
    """All pipelines, in the order of their turns."""
    yield Pipeline(OURS, lambda source, folder: pack(source, folder, tokenizer, 1), dataset="ours")
    yield Pipeline(TWO_WORKERS, lambda source, folder: pack(source, folder, tokenizer, 2), dataset="ours")
    for name in BARE:
        missing = lacks(sys.executable, name)
        yield Skipped(name, missing) if missing else _peer(name, sys.executable, tokenizer)
    for name, slow in ((FAST, False), (CLASSIC, True)):
        script = megatron_lm / "tools" / f"{name}.py" if megatron_lm else None
        if megatron_lm is None or script is None:
            yield Skipped(name, "give --megatron-lm DIR, a checkout of Megatron-LM")
        elif not script.is_file():
            yield Skipped(name, f"{script} is not there")
        else:
            yield _megatron(name, megatron_lm, tokenizer, slow)
    for name in (DATATROVE, DATASETS):
        missing = lacks(peers_python, name)
        yield Skipped(name, missing) if missing else _peer(name, peers_python, tokenizer)


def pack(source: Path, folder: Path, tokenizer: Path, workers: int) -> list[str]:
    """`tpt pack` of plain documents, as it is by default: exact duplicates taken out, everything verified."""
    settings = [
        "data.style=none", f"data.tokenizer={tokenizer}", f'corpus.paths=["{source}"]',
        f"data.output={folder / 'ours'}", f"data.workers={workers}",
    ]  # fmt: skip
    return ["env", *ENVIRONMENT, sys.executable, "-m", "tpt_megatron", "pack", *settings]


def reference(source: Path, folder: Path, tokenizer: Path) -> list[str]:
    """megatron.core's builder, fed by the Hugging Face tokenizer, writes folder/reference.*."""
    arguments = [str(BUILDER), str(source), str(folder / "reference"), str(tokenizer)]
    return ["env", *ENVIRONMENT, sys.executable, *arguments]


def lacks(python: str, module: str) -> str:
    """Why `python` cannot run the peer `module`; "" where it can."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        done = subprocess.run([python, "-c", code], check=False, capture_output=True)
    except OSError as error:
        return f"{python}: {error.strerror}"
    return f"not installed for {python}; give --peers-python" if done.returncode else ""


def _peer(name: str, python: str, tokenizer: Path) -> Pipeline:
    def command(source: Path, folder: Path) -> list[str]:
        script = str(HERE / "peers.py")
        return ["env", *ENVIRONMENT, python, script, name, str(source), str(folder), str(tokenizer)]

    return Pipeline(name, command, slow=name not in BARE)


def _megatron(name: str, checkout: Path, tokenizer: Path, slow: bool) -> Pipeline:
    """A script of Megatron-LM by its own flags: gigatoken in the fast one."""

    def command(source: Path, folder: Path) -> list[str]:
        flags = [
            f"--input={source}", f"--output-prefix={folder / name}", "--append-eod",
            "--tokenizer-type=HuggingFaceTokenizer", f"--tokenizer-model={tokenizer}",
            "--workers=1" if name == CLASSIC else "--use-gigatoken",
        ]  # fmt: skip
        script = str(checkout / "tools" / f"{name}.py")
        return ["env", *ENVIRONMENT, f"PYTHONPATH={checkout}", sys.executable, script, *flags]

    return Pipeline(name, command, slow=slow, dataset="" if slow else f"{name}_text_document")
