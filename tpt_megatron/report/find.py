"""What is under a folder: runs, datasets, trajectories, evaluations, and what of these cannot be read."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tpt_megatron.artifact import MANIFEST_SUFFIX, TEMPORARY, find_manifests, read_manifest
from tpt_megatron.errors import InputError, TptError
from tpt_megatron.report import datasets, evaluations, trajectories
from tpt_megatron.report.datasets import Dataset, read_dataset
from tpt_megatron.report.decoding import Decoders
from tpt_megatron.report.evaluations import Evaluation, read_evaluation
from tpt_megatron.report.training import METRICS, Run, read_run
from tpt_megatron.report.trajectories import Trajectories, read_trajectories


@dataclass(frozen=True)
class LeftOut:
    """An artifact that is there and cannot be shown, and why; the page says so at its top."""

    name: str
    problem: str


@dataclass(frozen=True)
class Found:
    """Everything under one folder, each kind in the order of the names; or one dataset."""

    runs: tuple[Run, ...]
    datasets: tuple[Dataset, ...]
    trajectories: tuple[Trajectories, ...]
    evaluations: tuple[Evaluation, ...]
    left_out: tuple[LeftOut, ...]


def find(path: Path) -> Found:
    """What the folder `path` holds, or the dataset of the prefix `path`.

    Raises InputError where it is neither, or the folder holds nothing that can be shown; DamagedError where
    the one dataset is damaged.
    """
    if path.is_dir():
        return _find_below(path)
    if not (manifests := find_manifests(path)):
        raise InputError(
            f"{path}: no such folder, and no dataset of this name",
            expected="a folder with runs, datasets or evaluations, or a dataset's prefix",
        )
    return Found((), (read_dataset(manifests[0], path.name, Decoders()),), (), (), ())


def _find_below(folder: Path) -> Found:
    """To the bottom; names are relative to `folder`."""
    decoders = Decoders()
    left_out: list[LeftOut] = []

    def read[T](paths: Iterable[Path], reader: Callable[[Path, str], T]) -> tuple[T, ...]:
        rows = []
        for path in paths:
            name = _name(path, folder)
            try:
                rows.append(reader(path, name))
            except TptError as error:
                left_out.append(LeftOut(name, str(error).replace(f"{folder}{os.sep}", "")))
        return tuple(rows)

    def read_packed(path: Path, name: str) -> Dataset:
        return read_dataset(path, name, decoders)

    logs = sorted(path for path in folder.rglob(METRICS) if _final(path, folder))
    manifests = [path for path in find_manifests(folder) if _final(path, folder)]
    kinds = read(manifests, lambda path, name: (read_manifest(path).kind, path))
    found = Found(
        runs=read(logs, read_run),
        datasets=read((path for kind, path in kinds if kind == datasets.KIND), read_packed),
        trajectories=read((path for kind, path in kinds if kind == trajectories.KIND), read_trajectories),
        evaluations=read((path for kind, path in kinds if kind == evaluations.KIND), read_evaluation),
        left_out=tuple(left_out),
    )
    if not (found.runs or found.datasets or found.trajectories or found.evaluations):
        raise InputError(
            f"{folder}: nothing to report",
            got="; ".join(item.problem for item in left_out) or None,
            expected=f"{METRICS} of a run, or the manifest of a dataset, of trajectories or of an evaluation",
        )
    return found


def _final(path: Path, folder: Path) -> bool:
    """A file with its final name, in folders with theirs."""
    return not any(part.startswith(TEMPORARY) for part in path.relative_to(folder).parts)


def _name(path: Path, folder: Path) -> str:
    """What a reader calls the artifact of `path`: its folder or, for PREFIX.manifest.json, its prefix."""
    prefix = path.name.removesuffix(MANIFEST_SUFFIX).removesuffix(".")
    artifact = path.with_name(prefix) if prefix and prefix != path.name else path.parent
    name = artifact.relative_to(folder).as_posix()
    return folder.resolve().name if name == "." else name
