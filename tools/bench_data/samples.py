"""Samples: how many a second, how fast a large dataset and a large blend open, how tight best_fit packs.

Each part runs in a process of its own and prints one JSON line; megatron.core's GPTDataset runs beside ours
on the same files. Documents are of log-normal length. The large dataset has a sparse .bin and 500 tokens a
document; --full makes it 100 billion tokens in 200 million documents, which needs 4 GB of disk.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tpt_megatron.artifact import MANIFEST_SUFFIX, FileDigest, Manifest, write_manifest
from tpt_megatron.config.schema import DataConfig
from tpt_megatron.data.dataset import Samples
from tpt_megatron.data.layout import CORE, HEADER, MAGIC, PARTS_DTYPE, VERSION, dataset_file
from tpt_megatron.data.plan import write_plan

LENGTH, VOCABULARY, BATCH = 8192, 32000, 64
DOCUMENTS, FULL_DOCUMENTS, MEAN_TOKENS = 20_000_000, 200_000_000, 500
RATE_TOKENS, RATE_MEAN, RATE_SECONDS = 64_000_000, 2000, 8.0
BLENDED = 512
PACKED_DOCUMENTS = 20_000_000
CHUNK = 2**22  # documents made at once


def write_dataset(prefix: Path, documents: int, mean: int, *, sparse: bool) -> None:
    """A dataset of `documents` of about `mean` tokens; a sparse one holds zeros, and opens like any other."""
    random = np.random.default_rng(0)
    lengths, pointers = dataset_file(prefix, "lengths"), dataset_file(prefix, "pointers")
    tokens = 0
    with open(lengths, "wb") as first, open(pointers, "wb") as second, open(f"{prefix}.bin", "wb") as ids:
        for start in range(0, documents, CHUNK):
            own = random.lognormal(np.log(mean) - 0.32, 0.8, min(CHUNK, documents - start))
            sizes = np.clip(own, 8, 32000).astype("<i4")
            ends = tokens + np.cumsum(sizes, dtype="<i8")
            first.write(sizes.data)
            second.write(((ends - sizes) * 2).data)
            if not sparse:
                ids.write(random.integers(0, VOCABULARY, int(ends[-1]) - tokens, dtype="<u2").data)
            tokens = int(ends[-1])
        ids.truncate(2 * tokens)
    with open(f"{prefix}.idx", "wb") as index:
        index.write(HEADER.pack(MAGIC, VERSION, 8, documents, documents + 1))
        for part in (lengths, pointers):
            with open(part, "rb") as file:
                while data := file.read(2**22):
                    index.write(data)
            part.unlink()
        for start in range(0, documents + 1, CHUNK):
            index.write(np.arange(start, min(start + CHUNK, documents + 1), dtype="<i8").data)
    with open(f"{prefix}.parts", "wb") as parts:
        parts.truncate(documents * PARTS_DTYPE.itemsize)
    files = {f"{prefix.name}.{s}": FileDigest(Path(f"{prefix}.{s}").stat().st_size, ()) for s in CORE}
    tokenizer = {"name": "none", "fingerprint": "0", "vocab_size": VOCABULARY}
    about = {"tokenizer": tokenizer, "control": {"end": 0}, "style": "none"}
    write_manifest(dataset_file(prefix, MANIFEST_SUFFIX), Manifest("dataset", files, about))


def private_mb() -> float:
    """Memory of this process beyond mapped files."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) / 1024


def open_ours(folder: Path) -> dict[str, float]:
    before, start = private_mb(), time.perf_counter()
    samples = Samples(DataConfig(blend=((str(folder / "large"), 1.0),), document_mask=True), 1, VOCABULARY)
    opened = time.perf_counter() - start
    samples.batch(range(BATCH))
    ready = time.perf_counter() - start
    return {"open_s": opened, "first_batch_s": ready, "private_mb": private_mb() - before}


def open_peer(folder: Path) -> dict[str, float]:
    from tpt_megatron.mcore.peer_dataset import gpt_dataset  # seconds, not counted

    before, start = private_mb(), time.perf_counter()
    dataset = gpt_dataset(folder / "large", folder / "cache", LENGTH, VOCABULARY)
    dataset[0]
    ready = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"first_sample_s": ready, "private_mb": private_mb() - before, "peak_mb": peak}


def rate(action: Callable[[int], int]) -> float:
    """Samples a CPU-second of `action(first)`, which makes some from `first` on and says how many."""
    done = action(0)
    first, start, done = done, time.process_time(), 0
    while (spent := time.process_time() - start) < RATE_SECONDS:
        done += action(first + done)
    return done / spent


def rate_ours(folder: Path) -> dict[str, float]:
    rates = {}
    for name, mask in (("plain", False), ("document_mask", True)):
        data = DataConfig(blend=((str(folder / "warm"), 1.0),), document_mask=mask)
        samples = Samples(data, 1, VOCABULARY)

        def some(first: int, samples: Samples = samples) -> int:
            return len(samples.batch(range(first, first + BATCH)))

        rates[name] = rate(some)
    return rates


def rate_peer(folder: Path) -> dict[str, float]:
    from tpt_megatron.mcore.peer_dataset import gpt_dataset

    dataset = gpt_dataset(folder / "warm", folder / "cache", LENGTH, VOCABULARY)

    def one(first: int) -> int:
        dataset[first % len(dataset)]
        return 1

    return {"plain": rate(one)}


def blend_ours(folder: Path) -> dict[str, float]:
    blend = tuple((str(folder / f"blend-{n}"), 1.0 + n) for n in range(BLENDED))
    start = time.perf_counter()
    samples = Samples(DataConfig(blend=blend), 1, VOCABULARY)
    opened = time.perf_counter() - start
    samples.batch(range(BATCH))
    return {"open_s": opened, "first_batch_s": time.perf_counter() - start}


def best_fit(folder: Path) -> dict[str, float]:
    """Documents of median 900 tokens with thoughts of median 3,000, as long as a bin at most and longer."""
    random = np.random.default_rng(0)
    lengths = np.empty(PACKED_DOCUMENTS, dtype=np.int32)
    for start in range(0, PACKED_DOCUMENTS, CHUNK):
        own = lengths[start : start + CHUNK]
        text = np.clip(random.lognormal(np.log(900), 0.8, len(own)), 32, 2048)
        own[:] = text + np.clip(random.lognormal(np.log(3000), 0.7, len(own)), 64, 8192) + 1
    results = {}
    for name, most in (("split", None), ("at_most_a_bin", LENGTH)):
        start_s = time.process_time()
        summary = write_plan(np.minimum(lengths, most or lengths.max()), LENGTH, folder / "x.plan")
        results[f"{name}_cpu_s"] = time.process_time() - start_s
        results[f"{name}_padding_percent"] = 100 * summary.padding_fraction
    results["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return results


TARGETS = (  # part, figure, bound, whether it is a lower one
    ("open_ours", "first_batch_s", 1.0, False),
    ("open_ours", "private_mb", 300, False),
    ("rate_ours", "document_mask", 60_000, True),
    ("blend_ours", "open_s", 2.0, False),
    ("best_fit", "at_most_a_bin_padding_percent", 1.5, False),
    ("best_fit", "split_cpu_s", 10.0, False),
)
PARTS = (open_ours, open_peer, rate_ours, rate_peer, blend_ours, best_fit)


def run(full: bool = False, folder: Path | None = None) -> list[str]:
    """Every part's figures, a line each; `folder` is where the files go, 4 GB with `full`, else 1 GB."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        home = Path(temporary)
        write_dataset(home / "large", FULL_DOCUMENTS if full else DOCUMENTS, MEAN_TOKENS, sparse=True)
        write_dataset(home / "warm", RATE_TOKENS // RATE_MEAN, RATE_MEAN, sparse=False)
        for number in range(BLENDED):
            write_dataset(home / f"blend-{number}", 200, RATE_MEAN, sparse=True)
        figures = {part.__name__: _apart(part.__name__, home) for part in PARTS}
    return [*(f"{part:12} {_shown(found)}" for part, found in figures.items()), *verdicts(figures)]


def _apart(part: str, folder: Path) -> dict[str, float] | str:
    """The figures of a part, or what went wrong."""
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"failed: {done.stderr.strip().splitlines()[-1]}"
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _shown(figures: dict[str, float] | str) -> str:
    if isinstance(figures, str):
        return figures
    return "  ".join(f"{name} {value:,.3f}" for name, value in figures.items())


def verdicts(figures: dict[str, dict[str, float] | str]) -> list[str]:
    """A line for each of TARGETS: whether it is met."""
    lines = []
    for part, name, bound, at_least in TARGETS:
        found = figures[part]
        value = float("nan") if isinstance(found, str) else found[name]
        met = value >= bound if at_least else value <= bound
        wanted = f"{'at least' if at_least else 'at most'} {bound:,}"
        lines.append(f"{'PASS' if met else 'FALLS SHORT'}: {part} {name} {value:,.3f}, {wanted}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--full", action="store_true", help="200 million documents: 4 GB of disk, and peers' minutes"
    )
    parser.add_argument("--folder", type=Path, help="where the files go")
    parser.add_argument("--part", choices=[part.__name__ for part in PARTS], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        part = next(part for part in PARTS if part.__name__ == arguments.part)
        print(json.dumps(part(arguments.folder)))
    else:
        print("\n".join(run(arguments.full, arguments.folder)))


if __name__ == "__main__":
    main()
