"""A packed dataset as its manifest and its lineage tell it."""

from dataclasses import dataclass
from pathlib import Path

from tpt_megatron.artifact import MANIFEST_SUFFIX, check_sizes, read_manifest
from tpt_megatron.report.facts import fact, read_batches
from tpt_megatron.report.lengths import Lengths

KIND = "dataset"
LINEAGE = "lineage.parquet"


@dataclass(frozen=True)
class Dataset:
    """One dataset; `document` and `thinking` are lengths of its sequences in tokens, None without lineage."""

    name: str
    style: str
    tokenizer: str
    sources: tuple[str, ...]
    sequences: int
    tokens: int
    document_tokens: int
    thinking_tokens: int
    document: Lengths | None
    thinking: Lengths | None

    @property
    def expansion(self) -> float | None:
        """All tokens for each document token; 1 for a dataset without thoughts."""
        return self.tokens / self.document_tokens if self.document_tokens else None


def read_dataset(path: Path, name: str) -> Dataset:
    """The dataset of the manifest at `path`. Raises InputError, DamagedError where it is not whole."""
    manifest = read_manifest(path, KIND)
    check_sizes(path, manifest)
    about = manifest.about
    lineage = path.name.removesuffix(MANIFEST_SUFFIX) + LINEAGE
    document, thinking = _lengths(path.with_name(lineage)) if lineage in manifest.files else (None, None)
    return Dataset(
        name=name,
        style=fact(about, "style", str, path),
        tokenizer=fact(about, "tokenizer.name", str, path),
        sources=tuple(str(source) for source in fact(about, "sources", list, path)),
        sequences=fact(about, "counts.sequences", int, path),
        tokens=fact(about, "counts.tokens", int, path),
        document_tokens=fact(about, "counts.document_tokens", int, path),
        thinking_tokens=fact(about, "counts.thinking_tokens", int, path),
        document=document,
        thinking=thinking,
    )


def _lengths(lineage: Path) -> tuple[Lengths, Lengths]:
    document = thinking = Lengths.empty()
    for batch in read_batches(lineage, ("document_tokens", "thinking_tokens")):
        document = document.add(batch.column("document_tokens").to_numpy())
        thinking = thinking.add(batch.column("thinking_tokens").to_numpy())
    return document, thinking
