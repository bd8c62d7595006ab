"""Finished trajectories: folders that `tpt think` wrote, checked by their manifests."""

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import orjson
import pyarrow as pa

from tpt_megatron.artifact import MANIFEST_SUFFIX, check_sizes, read_manifest
from tpt_megatron.data.chunks import Chunk, Outcome, Skip
from tpt_megatron.data.columns import NO_META
from tpt_megatron.data.files import InputFile, is_output, is_url
from tpt_megatron.data.parquet import group_chunks, open_parquet
from tpt_megatron.data.rows import RowBatch
from tpt_megatron.errors import DamagedError, InputError
from tpt_megatron.records import TRAJECTORY_SCHEMA, stable_hash

KIND = "trajectories"
JOB = "job.json"  # what a folder of trajectories holds from its first moment on
COLUMNS = ("id", "sample", "text", "thinking", "finish_reason", "source")


def holds_trajectories(name: str) -> bool:
    """Whether the input is a folder of trajectories, finished or not, or of any other artifact."""
    return any((Path(name) / file).is_file() for file in (MANIFEST_SUFFIX, JOB))


def named_inputs(inputs: Sequence[str], exclude: Path | None = None) -> list[str]:
    """`inputs`, each file:// or glob that names folders of trajectories replaced by the paths that it names.

    Else their files would pass for a corpus, whole or not. `exclude`: as of files.input_files.
    """
    names: list[str] = []
    for name in inputs:
        local = name.removeprefix("file://")
        found = [local]
        if not is_url(local) and not os.path.lexists(local):
            found = [
                path for path in sorted(glob.glob(local, recursive=True)) if not is_output(path, exclude)
            ]
        folders = [Path(path) for path in found if holds_trajectories(path)]
        if folders:  # of what "**" finds below a folder, its manifest knows
            names += [path for path in found if not any(f in Path(path).parents for f in folders)]
        else:
            names.append(name)
    return names


def trajectory_files(folder: Path) -> list[InputFile]:
    """The files of a finished folder in the order of their names.

    Raises InputError where the folder is no finished set of trajectories, DamagedError where a file has
    another size than the manifest promises.
    """
    path = folder / MANIFEST_SUFFIX
    manifest = read_manifest(path, kind=KIND)
    check_sizes(path, manifest)
    counts = manifest.about.get("counts")
    if not isinstance(counts, Mapping) or "pending" not in counts:
        raise InputError(f"{path}: its facts hold no counts.pending", fix="write it again with `tpt think`")
    if counts["pending"]:
        raise InputError(
            f"{folder}: trajectories are still pending",
            got=counts["pending"], expected=0, fix="run the same `tpt think` again to finish them",
        )  # fmt: skip
    return [
        InputFile(str((folder / name).absolute()), digest.size, stable_hash(*digest.blocks))
        for name, digest in sorted(manifest.files.items())
        if name.endswith(".parquet")
    ]


def trajectory_chunks(url: str, start: int, stop: int | None, metadata: bool, skip: Skip) -> Iterator[Chunk]:
    """The trajectories of the row groups [start, stop).

    Raises InputError where a column is missing, of another type or has no value; DamagedError where the file
    is not what was written.
    """
    columns = [*COLUMNS, "meta"] if metadata else list(COLUMNS)
    try:
        with open_parquet(url) as file:
            present = list(file.schema_arrow.remove_metadata())
            if missing := [field.name for field in TRAJECTORY_SCHEMA if field not in present]:
                raise InputError(f"{url}: columns missing or of another type", got=", ".join(missing))

            def chunk(rows: pa.RecordBatch, first: int) -> Chunk:
                return TrajectoryChunk(url, rows)

            yield from group_chunks(file, start, stop, columns, skip, chunk)
    except (OSError, pa.ArrowException) as error:
        raise DamagedError(f"{url}: not the Parquet file that was written: {error}") from error


class TrajectoryChunk:
    """Trajectories of one row group; all are good, or the file is damaged."""

    def __init__(self, url: str, rows: pa.RecordBatch) -> None:
        self._url, self._rows = url, rows

    def __len__(self) -> int:
        count: int = self._rows.num_rows
        return count

    def split(self, rows: int) -> tuple["TrajectoryChunk", "TrajectoryChunk"]:
        return TrajectoryChunk(self._url, self._rows[:rows]), TrajectoryChunk(self._url, self._rows[rows:])

    def add_to(self, batch: RowBatch) -> bool:
        names = self._rows.schema.names
        if empty := [name for name in names if self._rows.column(name).null_count]:
            raise InputError(f"{self._url}: trajectories with no value in {', '.join(empty)}")
        assert batch.thoughts is not None
        assert batch.samples is not None
        assert batch.finish_reasons is not None
        try:
            cells = {name: self._rows.column(name).to_pylist() for name in names}
            metas = [orjson.loads(meta) for meta in cells["meta"]] if "meta" in cells else None
        except (UnicodeDecodeError, orjson.JSONDecodeError) as error:
            raise DamagedError(f"{self._url}: not the Parquet file that was written: {error}") from error
        batch.ids += cells["id"]
        batch.texts += cells["text"]
        batch.sources += cells["source"]
        batch.metas += [NO_META] * len(self) if metas is None else metas
        batch.thoughts += cells["thinking"]
        batch.samples += cells["sample"]
        batch.finish_reasons += cells["finish_reason"]
        return True

    def outcomes(self) -> Iterator[Outcome]:
        raise AssertionError("trajectories are added at once")
