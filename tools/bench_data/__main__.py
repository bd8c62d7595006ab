"""`make bench-data`: packing beside its peers, in the same run, on the same text.

Takes turns: in each of N rounds every pipeline packs a short input (its start-up), then every size. The table
has medians; below it stand the targets. Always exits 0 where the measurement itself worked: it is no test.
"""

import argparse
import filecmp
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench_data import table
from bench_data.cost import CommandFailed, Cost, last_line, measure
from bench_data.pipelines import FAST, OURS, TWO_WORKERS, Pipeline, Skipped, pipelines, reference

START_MB = 1
# Peers make these strings tokens that text must not make; ours is held against the reference on them too.
HOSTILE = (
    "a<|endoftext|>b",
    "<think>\nno thought\n</think>",
    "é" * 999 + "\0<|endoftext|>",
    "</s> <s> [CLS]",
)


class Bench:
    """The runs of all pipelines, and what they wrote."""

    def __init__(self, folder: Path, sizes: list[int], slice_mb: int) -> None:
        self.corpus, self.sizes, self.slice_mb = folder, sizes, slice_mb
        self.costs: dict[tuple[str, int], list[Cost]] = defaultdict(list)
        self.printed: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
        self.identical: dict[str, bool] = {}
        self.failed: dict[str, str] = {}

    def input(self, size: int) -> Path:
        return self.corpus / f"{size}.jsonl"

    def sizes_of(self, pipeline: Pipeline) -> list[int]:
        if pipeline.bare:
            return self.sizes
        return [START_MB, self.slice_mb] if pipeline.slow else [START_MB, *self.sizes]

    def round(self, chosen: list[Pipeline], scratch: Path) -> None:
        """Every pipeline once on each of its inputs; same inputs next to each other in time."""
        for size in (START_MB, self.slice_mb, *self.sizes):
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                for number, pipeline in enumerate(chosen):
                    if size in self.sizes_of(pipeline) and pipeline.name not in self.failed:
                        self.run(pipeline, size, Path(folder) / str(number))
                self.compare(chosen, size, Path(folder))

    def run(self, pipeline: Pipeline, size: int, folder: Path) -> None:
        folder.mkdir()
        log = folder / "log.txt"
        try:
            cost = measure(pipeline.command(self.input(size), folder), log)
        except CommandFailed as error:
            self.failed[pipeline.name] = str(error)
            print(f"{pipeline.name} on {size} MB failed: {error}", file=sys.stderr)
            return
        self.costs[pipeline.name, size].append(cost)
        if pipeline.bare:
            self.printed[pipeline.name, size].append(json.loads(last_line(log)))
        print(f"  {pipeline.name:22} {size:4} MB  {cost.cpu_s:7.2f} CPU-s  {cost.wall_s:7.2f} s", flush=True)

    def compare(self, chosen: list[Pipeline], size: int, folder: Path) -> None:
        """Whether ours and Megatron-LM's are the same files, and ours by two workers."""
        written = {p.name: folder / str(n) / p.dataset for n, p in enumerate(chosen) if p.dataset}
        for name in (TWO_WORKERS, FAST):
            made = [written.get(OURS), written.get(name)]
            if all(prefix is not None and prefix.with_name(f"{prefix.name}.idx").exists() for prefix in made):
                key = f"{name}, {size} MB"
                self.identical[key] = self.identical.get(key, True) and same_dataset(
                    *map(Path, map(str, made))
                )

    def compare_reference(self, ours: Pipeline, tokenizer: Path, size: int, scratch: Path) -> None:
        """Ours against megatron.core's builder, on the text and on documents that name special tokens."""
        with tempfile.TemporaryDirectory(dir=scratch) as name:
            folder, source = Path(name), Path(name) / "rows.jsonl"
            rows = [json.dumps({"id": f"hostile{n}", "text": text}) for n, text in enumerate(HOSTILE)]
            source.write_bytes(self.input(size).read_bytes() + "".join(f"{row}\n" for row in rows).encode())
            try:
                measure(ours.command(source, folder), folder / "log.txt")
                measure(reference(source, folder, tokenizer), folder / "log.txt")
            except CommandFailed as error:
                self.failed["the reference"] = str(error)
                return
            same = same_dataset(folder / ours.dataset, folder / "reference")
            self.identical[f"megatron.core's builder, {size} MB and hostile rows"] = same

    def rows(self, chosen: list[Pipeline], text_mb: dict[str, float]) -> Iterator[table.Row]:
        for size in (self.slice_mb, *self.sizes):
            for pipeline in chosen:
                costs, name = self.costs[pipeline.name, size], pipeline.name
                if costs and pipeline.bare:
                    yield table.bare_row(name, size, self.printed[name, size], costs)
                elif costs:
                    starts = self.costs[name, START_MB]
                    yield table.row(name, size, text_mb[str(size)], costs, text_mb[str(START_MB)], starts)


def same_dataset(first: Path, second: Path) -> bool:
    """Whether the .bin and .idx of two prefixes have the same bytes."""
    files = [
        [prefix.with_name(f"{prefix.name}.{suffix}") for suffix in ("bin", "idx")]
        for prefix in (first, second)
    ]
    return all(filecmp.cmp(a, b, shallow=False) for a, b in zip(*files, strict=True))


def prepare(folder: Path, sizes: list[int], corpus: Path | None) -> dict[str, Any]:
    """The corpus and its tokenizer, made in a process of their own unless an earlier run left them."""
    about = folder / "about.json"
    wanted = {"sizes": sorted(sizes), "corpus": str(corpus)}
    if not about.exists() or json.loads(about.read_text()).get("wanted") != wanted:
        script = str(Path(__file__).with_name("corpus.py"))
        given = ["--corpus", str(corpus)] if corpus else []
        arguments = [str(folder), "--megabytes", *map(str, sizes), *given]
        subprocess.run([sys.executable, script, *arguments], check=True)
        about.write_text(json.dumps({**json.loads(about.read_text()), "wanted": wanted}))
    facts: dict[str, Any] = json.loads(about.read_text())
    return facts


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench_data", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/bench-data"), help="the corpus is kept here"
    )
    parser.add_argument("--corpus", type=Path, help='a real corpus: JSONL with a column "text"')
    parser.add_argument("--sizes", type=int, nargs="+", default=[150, 450], help="MB of JSONL")
    parser.add_argument("--slice-mb", type=int, default=30, help="what peers at 1 to 3 MB/s get")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--megatron-lm", type=Path, help="a checkout of NVIDIA/Megatron-LM, main of 2026-08")
    parser.add_argument("--peers-python", default=sys.executable, help="a Python with datatrove and datasets")
    parser.add_argument("--only", nargs="+", help="these pipelines")
    parser.add_argument("--cpus", type=int, nargs="+", help="pin everything to these cores")
    parser.add_argument("--json", type=Path, help="append the rows to this file, a JSON object a line")
    return parser.parse_args()


def main() -> int:
    options = parse()
    if options.cpus:
        os.sched_setaffinity(0, options.cpus)
    folder = options.folder.resolve()
    corpus = options.corpus.resolve() if options.corpus else None
    megatron_lm = options.megatron_lm.resolve() if options.megatron_lm else None
    about = prepare(folder, [START_MB, options.slice_mb, *options.sizes], corpus)
    found = list(pipelines(folder / "tokenizer", megatron_lm, options.peers_python))
    found = [entry for entry in found if not options.only or entry.name in options.only]
    chosen = [entry for entry in found if isinstance(entry, Pipeline)]
    bench = Bench(folder, sorted(options.sizes), options.slice_mb)
    print(f"corpus: {about['kind']}")
    loads = [os.getloadavg()[0]]
    for number in range(options.repeats):
        print(f"round {number + 1} of {options.repeats}", flush=True)
        bench.round(chosen, folder)
        loads.append(os.getloadavg()[0])
    if ours := [pipeline for pipeline in chosen if pipeline.name == OURS]:
        bench.compare_reference(ours[0], folder / "tokenizer", options.slice_mb, folder)
    rows = list(bench.rows(chosen, about["text_megabytes"]))
    cores = len(os.sched_getaffinity(0))
    print(f"\n{cores} cores, load {min(loads):.1f} to {max(loads):.1f}; medians of {options.repeats} rounds")
    print(table.render(rows), *table.slopes(rows), sep="\n")
    for entry in found:
        if isinstance(entry, Skipped):
            print(f"skipped: {entry.name}: {entry.reason}")
    for name, reason in bench.failed.items():
        print(f"failed: {name}: {reason}")
    for verdict in table.verdicts(rows, bench.identical):
        print(f"{'PASS' if verdict.passed else 'FALLS SHORT'}: {verdict.text}")
    if options.json:
        facts = {"time": time.time(), "corpus": about["kind"], "cores": cores, "load": max(loads)}
        with options.json.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in table.json_lines(rows, facts))
    return int(OURS in bench.failed)


if __name__ == "__main__":
    sys.exit(main())
