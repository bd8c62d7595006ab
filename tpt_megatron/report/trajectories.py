"""A folder of trajectories: its counts, how long its thoughts are, and a few of them to read."""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tpt_megatron.artifact import check_sizes, read_manifest
from tpt_megatron.errors import DamagedError
from tpt_megatron.records import TRAJECTORY_SCHEMA, Trajectory
from tpt_megatron.report.facts import fact, read_batches
from tpt_megatron.report.lengths import Lengths

KIND = "trajectories"
SAMPLES = 5


@dataclass(frozen=True)
class Trajectories:
    """One folder. documents_in = out + quarantined + pending; lengths are in the generator's tokens."""

    name: str
    generator: str
    revision: str
    prompt: str
    documents_in: int
    out: int
    quarantined: int
    pending: int
    stopped: int
    length_capped: int
    document: Lengths
    thinking: Lengths
    samples: tuple[Trajectory, ...]

    @property
    def capped_share(self) -> float | None:
        """Of the thoughts, those that were cut at the cap; None where there is no thought."""
        finished = self.stopped + self.length_capped
        return self.length_capped / finished if finished else None


def read_trajectories(path: Path, name: str) -> Trajectories:
    """The trajectories of the manifest at `path`. InputError, DamagedError where they are not whole."""
    manifest = read_manifest(path, KIND)
    check_sizes(path, manifest)
    about = manifest.about
    files = [path.parent / file for file in sorted(manifest.files) if file.endswith(".parquet")]
    document, thinking = _lengths(files)
    return Trajectories(
        name=name,
        generator=fact(about, "generator", str, path),
        revision=fact(about, "revision", str, path),
        prompt=fact(about, "prompt", str, path),
        documents_in=fact(about, "counts.documents_in", int, path),
        out=fact(about, "counts.out", int, path),
        quarantined=fact(about, "counts.quarantined", int, path),
        pending=fact(about, "counts.pending", int, path),
        stopped=fact(about, "finish_reasons.stop", int, path),
        length_capped=fact(about, "finish_reasons.length", int, path),
        document=document,
        thinking=thinking,
        samples=_samples(files),
    )


def _lengths(files: list[Path]) -> tuple[Lengths, Lengths]:
    document = thinking = Lengths.empty()
    columns = ("document_tokens", "thinking_tokens")
    for batch in chain.from_iterable(read_batches(file, columns) for file in files):
        document = document.add(batch.column("document_tokens").to_numpy())
        thinking = thinking.add(batch.column("thinking_tokens").to_numpy())
    return document, thinking


def _samples(files: list[Path]) -> tuple[Trajectory, ...]:
    found: list[Trajectory] = []
    for file in files:
        for batch in read_batches(file, TRAJECTORY_SCHEMA.names, SAMPLES):
            try:
                found += [Trajectory(**row) for row in batch.to_pylist()]
            except UnicodeDecodeError as error:
                raise DamagedError(f"{file}: text that is not UTF-8: {error}") from error
            if len(found) >= SAMPLES:
                return tuple(found[:SAMPLES])
    return tuple(found)
