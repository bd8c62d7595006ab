"""The end of a job: its manifest, and the summary that is read back from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpt_megatron.artifact import (
    BLOCK_BYTES,
    MANIFEST_SUFFIX,
    Manifest,
    check_sizes,
    digest_file,
    read_manifest,
    write_manifest,
)
from tpt_megatron.errors import InputError

KIND = "trajectories"


@dataclass(frozen=True, slots=True)
class ThinkSummary:
    """What a finished job did; `documents` counts all rows of the corpus, bad ones too."""

    documents: int
    out: int
    quarantined: int
    thinking_tokens: int
    document_tokens: int
    stopped: int
    length_capped: int
    seconds: float  # of the run that finished the job
    output: str


def finish(folder: Path, parts: Sequence[Path], about: Mapping[str, Any]) -> None:
    """Drop what only a running job needs and write the manifest, last.

    Raises InputError where the folder holds parts beside `parts`: the corpus has become shorter.
    """
    paths = sorted(folder.glob("part-*.parquet"))
    if paths != sorted(parts):
        stray = sorted(set(paths) ^ set(parts))[0]
        raise InputError(
            f"{stray}: the corpus no longer has the documents of this part",
            fix="give the corpus as it was when the job began, or another thinking.output",
        )
    journal = folder / "journal"
    if journal.exists():
        for left in journal.iterdir():  # a kill fell between a part's link and its journal's removal
            left.unlink()
        journal.rmdir()
    paths += [folder / "job.json", *sorted(folder.glob("quarantine/*"))]
    files = {path.relative_to(folder).as_posix(): digest_file(path, BLOCK_BYTES) for path in paths}
    write_manifest(folder / MANIFEST_SUFFIX, Manifest(KIND, files, about, BLOCK_BYTES))


def finished(folder: Path) -> ThinkSummary:
    """The summary of a finished job, from its manifest, its files' sizes checked."""
    path = folder / MANIFEST_SUFFIX
    manifest = read_manifest(path, KIND)
    check_sizes(path, manifest)
    about = manifest.about
    return ThinkSummary(
        documents=about["counts"]["documents_in"],
        out=about["counts"]["out"],
        quarantined=about["counts"]["quarantined"],
        thinking_tokens=about["thinking_tokens"],
        document_tokens=about["document_tokens"],
        stopped=about["finish_reasons"]["stop"],
        length_capped=about["finish_reasons"]["length"],
        seconds=about["seconds"],
        output=str(folder),
    )
