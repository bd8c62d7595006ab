"""From finished temporary files to a dataset under its name, and the bytes of its index."""

import glob
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tpt_megatron.artifact import (
    BLOCK_BYTES,
    MANIFEST_SUFFIX,
    TEMPORARY,
    FileDigest,
    Manifest,
    fsync_folder,
    write_manifest,
)
from tpt_megatron.data.layout import EXTRAS, HEADER, MAGIC, VERSION, dataset_file, dtype_code

SEQUENCES_PER_WRITE = 2**20  # bounds the memory of writing the index, 28 bytes a sequence


def write_index(
    write: Callable[[bytes], None],
    lengths: Callable[[], Iterator[npt.NDArray[np.integer[Any]]]],
    count: int,
    dtype: np.dtype[Any],
) -> None:
    """The `.idx` of `count` sequences; `lengths()` gives their lengths in parts, and is asked twice."""
    write(HEADER.pack(MAGIC, VERSION, dtype_code(dtype), count, count + 1))
    for part in lengths():
        write(part.astype("<i4").tobytes())
    pointer = 0
    for part in lengths():
        sizes = part.astype("<i8") * dtype.itemsize
        write((np.cumsum(sizes) - sizes + pointer).astype("<i8").tobytes())
        pointer += int(sizes.sum())
    for start in range(0, count + 1, SEQUENCES_PER_WRITE):
        write(np.arange(start, min(start + SEQUENCES_PER_WRITE, count + 1), dtype="<i8").tobytes())


def publish(
    prefix: Path,
    temporary: Mapping[str, Path],
    digests: Mapping[str, FileDigest],
    about: Mapping[str, Any],
    block_bytes: int = BLOCK_BYTES,
) -> Manifest:
    """Rename synced files, by suffix, and write the manifest of `digests` last.

    No crash in between leaves a file of one dataset under the manifest of another.
    """
    folder = prefix.parent
    manifest_path = dataset_file(prefix, MANIFEST_SUFFIX)
    manifest_path.unlink(missing_ok=True)
    for torn in folder.glob(f"{TEMPORARY}*-{glob.escape(manifest_path.name)}"):
        torn.unlink(missing_ok=True)  # of a run that was killed while it wrote its manifest
    fsync_folder(folder)  # the old manifest is gone for good before the first new file is there
    for suffix, path in temporary.items():
        os.replace(path, dataset_file(prefix, suffix))
    for suffix in set(EXTRAS) - set(temporary):
        dataset_file(prefix, suffix).unlink(missing_ok=True)  # of the dataset that was here before
    fsync_folder(folder)
    files = {dataset_file(prefix, suffix).name: digest for suffix, digest in digests.items()}
    manifest = Manifest("dataset", files, about, block_bytes)
    write_manifest(manifest_path, manifest)
    return manifest
