"""`make quickstart`: the whole way of the data on 2 CPU cores, from docstrings to a report.

Every stage is a command that you can run yourself; a stage that is done is not done again, and one that was
interrupted goes on. Swap in a real generator with
    python examples/quickstart/run.py --generator Qwen/Qwen3-0.6B
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tpt_megatron.artifact import (
    MANIFEST_SUFFIX,
    check_sizes,
    find_manifests,
    manifest_of_tree,
    read_manifest,
    write_manifest,
    write_text,
)
from tpt_megatron.errors import InputError, TptError

HERE = Path(__file__).parent
TPT = [sys.executable, "-m", "tpt_megatron"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


@dataclass(frozen=True)
class Stage:
    """A command, and the artifacts that it leaves (paths in the run's folder)."""

    name: str
    command: Sequence[str]
    leaves: Sequence[Path]
    resumes: bool = False  # goes on with what an interrupted run of it left; else that is removed first


def stages(root: Path, arguments: argparse.Namespace) -> list[Stage]:
    """The way of the data, in order."""
    corpus, tokenizer, pairs = root / "corpus", root / "tokenizer", root / "pairs"
    trajectories, hf = root / "trajectories", root / "hf"
    out = [
        Stage("corpus", [*script("corpus"), f"{corpus}", f"--train={arguments.documents}"], [corpus]),
        Stage("tokenizer", [*script("tokenizer"), f"{corpus}", f"{tokenizer}"], [tokenizer]),
        Stage("pairs", [*script("pairs"), f"{corpus}", f"{pairs}", f"--tokenizer={tokenizer}"], [pairs]),
    ]
    generator = arguments.generator
    if not generator:
        generator = str(hf / "generator")
        out += [
            pack(root, "generator", "think_tags", pairs),
            train(root, "generator", arguments.generator_tokens),
            convert(root, "generator"),
        ]
    out += [think(root, part, generator, arguments) for part in ("train", "heldout")]
    out += [
        pack(root, "tpt", "think_tags", trajectories / "train"),
        pack(root, "vanilla", "none", trajectories / "train"),
        pack(root, "heldout-tpt", "think_tags", trajectories / "heldout"),
        pack(root, "heldout-vanilla", "none", trajectories / "heldout"),
    ]
    for model in ("tpt", "vanilla"):
        out += [train(root, model, arguments.tokens), convert(root, model), evaluate(root, model)]
    return out


def script(name: str) -> list[str]:
    return [sys.executable, str(HERE / f"{name}.py")]


def pack(root: Path, name: str, style: str, trajectories: Path) -> Stage:
    prefix = root / "data" / name
    keys = {
        "inputs": f'["{trajectories}"]',
        "tokenizer": root / "tokenizer",
        "style": style,
        "output": prefix,
    }
    settings = [f"data.{key}={value}" for key, value in keys.items()]
    return Stage(f"pack {name}", [*TPT, "pack", "quickstart", *settings], [prefix])


def train(root: Path, name: str, tokens: int) -> Stage:
    """Two data-parallel ranks over gloo; the same command under torchrun on a GPU machine uses its GPUs."""
    checkpoints = root / "checkpoints" / name
    settings = [
        f'data.blend=[["{root / "data" / name}", 1.0]]',
        f"data.tokenizer={root / 'tokenizer'}",
        f"train.tokens={tokens}",
        f"train.run_dir={root / 'logs' / name}",
        f"checkpoint.folder={checkpoints}",
    ]
    command = [*TORCHRUN, "tpt_megatron", "train", "quickstart", *settings]
    return Stage(f"train {name}", command, [checkpoints], resumes=True)


def convert(root: Path, name: str) -> Stage:
    checkpoints, target = root / "checkpoints" / name, root / "hf" / name
    return Stage(f"convert {name}", [*TPT, "convert", "to-hf", f"{checkpoints}/LAST", str(target)], [target])


def think(root: Path, part: str, generator: str, arguments: argparse.Namespace) -> Stage:
    output = root / "trajectories" / part
    settings = [
        f'corpus.paths=["{root / "corpus" / part}.jsonl"]',
        f"thinking.model={generator}",
        f"thinking.output={output}",
    ]
    if arguments.generator:
        settings += ["thinking.prompt=paper", "thinking.max_new_tokens=1024"]
    return Stage(f"think {part}", [*TPT, "think", "quickstart", *settings], [output], resumes=True)


def evaluate(root: Path, name: str) -> Stage:
    output = root / "eval" / name
    data = [str(root / "data" / f"heldout-{kind}") for kind in ("vanilla", "tpt")]
    settings = [f"evaluate.model={root / 'hf' / name}", f"evaluate.data={json.dumps(data)}"]
    command = [*TPT, "eval", "heldout", "quickstart", *settings, f"evaluate.output={output}"]
    return Stage(f"eval {name}", command, [output])


def run(stage: Stage, root: Path, console: Console) -> None:
    """Run the stage unless its record and its artifacts are there; its last line of output is its figures."""
    record = root / "stages" / f"{stage.name.replace(' ', '-')}.json"
    # The interpreter's path is left out: the same stage from a clone elsewhere is the same stage.
    command = [part for part in stage.command if part != sys.executable]
    if record.is_file():
        done = json.loads(record.read_text())
        if done["command"] != command:
            raise InputError(f"{root}: made with other settings ({stage.name})", fix="make clean-quickstart")
        if all(is_whole(path) for path in stage.leaves):
            console.print(f"[dim]{done['line']} (done already)[/]", soft_wrap=True, highlight=False)
            return
    for left in () if stage.resumes else stage.leaves:
        if left.is_dir():
            shutil.rmtree(left)
    start = time.monotonic()
    # A terminal shows the stage's own progress bar; elsewhere what it says on the side is kept in a file.
    log = root / "logs" / f"{stage.name.replace(' ', '-')}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as side:
        finished = subprocess.run(
            [last_step(part) for part in stage.command],
            stdout=subprocess.PIPE, stderr=None if sys.stderr.isatty() else side, text=True, check=False,
        )  # fmt: skip
    if finished.returncode:
        print(log.read_text()[-4000:], file=sys.stderr)
        raise SystemExit(finished.returncode)
    lines = [line for line in finished.stdout.splitlines() if line.strip()]
    line = lines[-1] if lines else stage.name
    write_text(record, json.dumps({"command": command, "line": line}, indent=1) + "\n")
    console.print(
        f"{line}  [{time.monotonic() - start:.0f} s]", soft_wrap=True, markup=False, highlight=False
    )


def last_step(part: str) -> str:
    """`FOLDER/LAST` is the folder's newest checkpoint step."""
    if not part.endswith("/LAST"):
        return part
    return str(sorted(Path(part).parent.glob("step-*"))[-1])


def is_whole(path: Path) -> bool:
    """The artifact is there with the sizes of its manifest (`tpt verify` compares every byte)."""
    manifests = find_manifests(path)
    try:
        for manifest in manifests:
            check_sizes(manifest, read_manifest(manifest))
    except TptError:
        return False
    return bool(manifests)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--documents", type=int, default=250, help="documents to think about")
    parser.add_argument(
        "--generator", default="", help="a Hugging Face model instead of the one trained here"
    )
    parser.add_argument("--generator-tokens", type=int, default=800_000)
    parser.add_argument("--tokens", type=int, default=300_000, help="budget of each of the two models")
    arguments = parser.parse_args()
    console, root, start = Console(), arguments.output, time.monotonic()
    try:
        for stage in stages(root, arguments):
            run(stage, root, console)
        page = Stage("report", [*TPT, "report", str(root)], [root / MANIFEST_SUFFIX])
        run(page, root, console)
        write_manifest(root / MANIFEST_SUFFIX, manifest_of_tree(root, "run", {"example": "quickstart"}))
    except TptError as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return error.exit_code
    console.print(f"quickstart: {time.monotonic() - start:.0f} s -> {root / 'report.html'}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
