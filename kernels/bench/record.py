"""A benchmark's record: where it ran, with which versions, and every figure; as JSON and as markdown."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from clock import Ceilings
from trial import Measurement

PACKAGES = (
    "torch", "triton", "numpy", "flash-attn", "flash-attn-3", "aiter", "amd-aiter", "liger-kernel",
    "cut-cross-entropy", "quack-kernels", "megatron-core", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """The machine and the software of a run; a version is None where the package is not installed."""

    device: str
    date: str  # UTC, ISO 8601
    torch: str
    triton: str | None
    cuda: str | None
    rocm: str | None
    versions: Mapping[str, str | None]


@dataclass(frozen=True)
class Record:
    """A whole run of the benchmark."""

    place: Place
    ceilings: Ceilings
    measurements: Sequence[Measurement]


def this_place(device: torch.device) -> Place:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    versions = {package: _version(package) for package in PACKAGES}
    return Place(
        device=name, date=datetime.now(UTC).isoformat(timespec="seconds"), torch=torch.__version__,
        triton=versions["triton"], cuda=torch.version.cuda, rocm=torch.version.hip, versions=versions,
    )  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def as_json(record: Record) -> dict[str, Any]:
    """All of it, with the comparison of ours to the fastest peer."""
    return asdict(record) | {"comparisons": [asdict(c) for c in comparisons(record.measurements)]}


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def write_json(path: Path, record: Record) -> None:
    write(path, json.dumps(as_json(record), indent=1, allow_nan=False) + "\n")


@dataclass(frozen=True)
class Comparison:
    """One impl of ours beside the fastest peer; a ratio is our time over its time, below 1 is faster.

    `alternated` is the one to trust: both timed again, run by run in turn.
    """

    op: str
    phase: str
    shape: str
    ours: str
    milliseconds: float
    fastest_peer: str | None
    peer_milliseconds: float | None
    ratio: float | None
    alternated: float | None = None


def comparisons(measurements: Sequence[Measurement]) -> list[Comparison]:
    """In the measurements' order; an impl of ours that did not run has none."""
    found: list[Comparison] = []
    for mine in (m for m in measurements if m.contender.startswith("ours") and m.counts):
        peers = [
            m for m in measurements
            if (m.op, m.phase, m.shape) == (mine.op, mine.phase, mine.shape)
            and m.counts and not m.contender.startswith("ours")
        ]  # fmt: skip
        fastest = min(peers, key=lambda m: m.milliseconds or 0.0, default=None)
        assert mine.milliseconds is not None
        theirs = fastest.milliseconds if fastest else None
        ratio = mine.milliseconds / theirs if theirs else None
        peer = fastest.contender if fastest else None
        where = (mine.op, mine.phase, mine.shape, mine.contender)
        again = mine.alternated_ratio if mine.alternated_peer == peer else None
        found.append(Comparison(*where, mine.milliseconds, peer, theirs, ratio, again))
    return found
