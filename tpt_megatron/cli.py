"""`tpt VERB a.toml preset section.key=value ...`: one function per verb, one line of figures at its end."""

import argparse
import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tpt_megatron.config.load import dump, load
from tpt_megatron.errors import ExitCode, InterruptedRun, TptError

LATER = ("plan", "launch", "bench", "audit")  # verbs of the design that this version does not have


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of the command (errors.ExitCode)."""
    # torch's extension builder says at import that there is no CUDA; nothing here builds an extension.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in LATER:
        print(f"tpt: {given[0]}: this version does not have this verb yet", file=sys.stderr)
        return ExitCode.USER
    options = _parser().parse_args(given)
    try:
        line = options.run(options)
    except TptError as error:
        print(f"tpt {options.verb}: {error}", file=sys.stderr)
        return error.exit_code
    if line:
        print(line, flush=True)
    return ExitCode.DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tpt", description="Thinking Augmented Pre-training, from raw documents to an evaluated model."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Callable[[argparse.Namespace], str], text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    def settings(added: argparse.ArgumentParser) -> None:
        added.add_argument(
            "settings",
            nargs="*",
            metavar="SETTING",
            help="a preset, a .toml file or section.key=value; last wins",
        )
        added.add_argument(
            "--dry-run", action="store_true", help="check the config, say what would run, and stop"
        )

    settings(verb("think", think, "write a thinking trajectory for every document of a corpus"))
    settings(verb("pack", pack, "compose, tokenize and index a training dataset"))
    settings(verb("train", train, "train on a blend of datasets (under torchrun for more than one rank)"))
    convert_parser = verb("convert", convert, "export a checkpoint step to Hugging Face safetensors")
    convert_parser.add_argument("direction", choices=["to-hf"])
    convert_parser.add_argument("source", type=Path, metavar="STEP_DIR")
    convert_parser.add_argument("target", type=Path, metavar="HF_DIR")
    convert_parser.add_argument("--dtype", default="bf16", choices=["bf16", "fp32"])
    convert_parser.add_argument("--tokenizer", help="default: the one in the run's config")
    eval_parser = verb(
        "eval", evaluate, "measure a model; suite heldout: loss on document and thought tokens"
    )
    eval_parser.add_argument("suite", choices=["heldout"])
    settings(eval_parser)
    report_parser = verb(
        "report", report, "one static HTML page on everything below a folder, or on one dataset"
    )
    report_parser.add_argument("folder", type=Path, metavar="FOLDER_OR_PREFIX")
    report_parser.add_argument(
        "--output", type=Path, help="default: FOLDER/report.html or PREFIX.report.html"
    )
    verify_parser = verb("verify", verify, "check every byte of the artifacts at or below a path")
    verify_parser.add_argument("path", type=Path)
    settings(verb("config", config, "print the resolved config tree"))
    return parser


def config(options: argparse.Namespace) -> str:
    return dump(load(options.settings)).rstrip()


def think(options: argparse.Namespace) -> str:
    tree = load(options.settings)
    if options.dry_run:
        return f"think: would write {tree.thinking.output} from {', '.join(tree.corpus.paths)}"
    from tpt_megatron.data.source import open_corpus
    from tpt_megatron.thinking.job import think as run

    with _bar("think") as advance:
        try:
            done = run(
                open_corpus(tree.corpus),
                tree.thinking,
                lambda documents, tokens: advance(documents, None, f"think  {tokens} thinking tokens"),
            )
        except KeyboardInterrupt:
            raise InterruptedRun(
                "interrupted; the journal is safe", fix="run the same command again"
            ) from None
    return (
        f"think: {done.documents} documents = {done.out} trajectories + {done.quarantined} quarantined, "
        f"{done.thinking_tokens} thinking tokens ({done.thinking_tokens / max(done.out, 1):.0f} a document), "
        f"{done.length_capped} at the cap, {done.seconds:.1f} s -> {done.output}"
    )


def pack(options: argparse.Namespace) -> str:
    tree = load(options.settings)
    if options.dry_run:
        from tpt_megatron.data.pack import check

        plan = check(tree.data, tree.corpus)
        return (
            f"pack: would write {tree.data.output}.bin and .idx in style {tree.data.style} "
            f"from {len(plan.files)} files in {len(plan.blocks)} blocks"
        )
    from tpt_megatron.data.pack import pack as run

    with _bar("pack") as advance:
        rows = 0

        def report(more: int) -> None:
            nonlocal rows
            rows += more
            advance(rows, None, "pack")

        try:
            done = run(tree.data, tree.corpus, report)
        except KeyboardInterrupt:
            fix = "run the same command again"
            raise InterruptedRun("interrupted; finished blocks are safe", fix=fix) from None
    if done.warning:
        print(f"tpt pack: warning: {done.warning}", file=sys.stderr)
    left_out = "".join(f", {count} {reason}" for reason, count in done.left_out.items())
    shard = f"shard {done.shard}, " if done.shard else ""
    return (
        f"pack: {shard}{done.rows} rows = {done.sequences} sequences, {done.quarantined} quarantined"
        f"{left_out}; "
        f"{done.tokens} tokens = {done.document_tokens} document + {done.thinking_tokens} thinking, "
        f"{done.megabytes:.2f} MB of text in {done.seconds:.1f} s -> {done.prefix}"
    )


def train(options: argparse.Namespace) -> str:
    tree = load(options.settings)
    if options.dry_run:
        tokens = tree.train_steps * tree.tokens_per_step
        return f"train: would run {tree.train_steps} steps of {tree.tokens_per_step} tokens, {tokens} in all"
    from tpt_megatron.train.run import train as run

    # A dataset of the blend keeps three to five files open; the usual soft limit of 1,024 is for 200 of them.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    done = run(tree)
    if done.rank:
        return ""
    return (
        f"train: step {done.steps}, {done.tokens} tokens, loss {done.loss:.4f}, {done.seconds:.1f} s, "
        f"{done.tokens_per_second:.0f} tokens/s -> {done.checkpoint}"
    )


def convert(options: argparse.Namespace) -> str:
    from tpt_megatron.convert.to_hf import to_hf

    start = time.monotonic()
    done = to_hf(options.source, options.target, options.dtype, options.tokenizer)
    tokenizer = f"tokenizer of {done.tokenizer}" if done.tokenizer else "no tokenizer"
    return (
        f"convert: {done.tensors} tensors, {done.parameters} parameters, {done.gigabytes:.3f} GB, "
        f"{tokenizer}, {time.monotonic() - start:.1f} s -> {done.folder}"
    )


def evaluate(options: argparse.Namespace) -> str:
    tree = load(options.settings)
    if options.dry_run:
        return f"eval: would measure {tree.evaluate.model} on {', '.join(tree.evaluate.data)}"
    from tpt_megatron.evaluate.heldout import evaluate_heldout

    with _bar("eval") as advance:
        losses = evaluate_heldout(tree.evaluate, lambda done, total: advance(done, total, "eval"))

    def show(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    figures = "; ".join(
        f"{name} document {show(x.document_loss)} thought {show(x.thinking_loss)} all {show(x.loss)}"
        for name, x in losses.items()
    )
    return f"eval: {figures} (nats a token) -> {tree.evaluate.output}"


def report(options: argparse.Namespace) -> str:
    from tpt_megatron.report.run import report as run

    done = run(options.folder, options.output)
    return (
        f"report: {done.runs} runs, {done.datasets} datasets, {done.trajectories} jobs, "
        f"{done.evaluations} evaluations, {done.left_out} left out, {done.megabytes:.1f} MB -> {done.output}"
    )


def verify(options: argparse.Namespace) -> str:
    from tpt_megatron.artifact import verify_tree

    start = time.monotonic()
    manifests = verify_tree(options.path)
    files = [digest for manifest in manifests for digest in manifest.files.values()]
    megabytes = sum(digest.size for digest in files) / 1e6
    seconds = time.monotonic() - start
    return (
        f"verify: {len(manifests)} artifacts, {len(files)} files, {megabytes:.1f} MB sound "
        f"in {seconds:.1f} s -> {options.path}"
    )


@contextmanager
def _bar(name: str) -> Iterator[Callable[[int, int | None, str], None]]:
    """A progress bar; the function takes what is done, the total where it is known, and a text."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total, text: progress.update(task, completed=done, total=total, description=text)
