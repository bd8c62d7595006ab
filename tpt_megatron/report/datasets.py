"""A packed dataset: what its manifest counts, what its lineage measures, what its tokens say."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tpt_megatron.artifact import MANIFEST_SUFFIX, Manifest, check_sizes, read_manifest
from tpt_megatron.data.indexed import IndexedDataset
from tpt_megatron.data.layout import CORE, dataset_file
from tpt_megatron.report.counts import Counts, disagreements, read_counts
from tpt_megatron.report.decoding import Decoders
from tpt_megatron.report.facts import fact, optional_fact
from tpt_megatron.report.lineage import Lineage, read_lineage, read_rows
from tpt_megatron.report.packed import PackedSequence, read_sequence
from tpt_megatron.report.phrases import Openings, read_openings

KIND = "dataset"
LINEAGE = "lineage.parquet"
SEED = 0  # of the random sample: the same dataset gives the same page
SAMPLED_SEQUENCES, SHOWN_SEQUENCES = 5000, 5
WINDOWS = (2048, 4096, 8192, 16384, 32768)  # tokens


@dataclass(frozen=True)
class Texts:
    """What decoding shows of a dataset: openings of a random sample, and a few of its sequences."""

    documents: Openings
    thoughts: Openings
    sequences: tuple[PackedSequence, ...]
    masked: bool  # some tokens carry no loss


@dataclass(frozen=True)
class Dataset:
    """One dataset. `lineage` is None where the manifest names none; `texts` is a sentence where decoding
    is not possible.
    """

    name: str
    style: str
    tokenizer: str
    sources: tuple[str, ...]
    counts: Counts
    lineage: Lineage | None
    texts: Texts | str
    disagreements: tuple[str, ...]  # between manifest, lineage and index, a sentence each

    @property
    def expansion(self) -> float | None:
        """All tokens for each document token; 1 for a dataset without thoughts."""
        counts = self.counts
        return counts.tokens / counts.document_tokens if counts.document_tokens else None


def read_dataset(path: Path, name: str, decoders: Decoders) -> Dataset:
    """The dataset of the manifest at `path`. Raises InputError, DamagedError where it is not whole."""
    manifest = read_manifest(path, KIND)
    check_sizes(path, manifest)
    about = manifest.about
    prefix = path.with_name(path.name.removesuffix(f".{MANIFEST_SUFFIX}"))
    style, tokenizer = fact(about, "style", str, path), fact(about, "tokenizer.name", str, path)
    counts = read_counts(about, path)
    lineage_path = dataset_file(prefix, LINEAGE)
    lineage = read_lineage(lineage_path) if lineage_path.name in manifest.files else None
    whole = all(dataset_file(prefix, suffix).name in manifest.files for suffix in CORE)
    tokens = IndexedDataset(prefix) if whole else None
    return Dataset(
        name=name,
        style=style,
        tokenizer=tokenizer,
        sources=tuple(str(source) for source in fact(about, "sources", list, path)),
        counts=counts,
        lineage=lineage,
        texts=_texts(tokens, manifest, lineage_path, decoders),
        disagreements=disagreements(counts, lineage, lineage_path, tokens),
    )


def _texts(
    tokens: IndexedDataset | None, manifest: Manifest, lineage: Path, decoders: Decoders
) -> Texts | str:
    if tokens is None or not tokens.num_sequences:
        return "Not decoded: the manifest names no tokens."
    path = dataset_file(tokens.prefix, MANIFEST_SUFFIX)
    name = fact(manifest.about, "tokenizer.name", str, path)
    decoder = decoders.get(name, optional_fact(manifest.about, "tokenizer.fingerprint", str, path))
    if isinstance(decoder, str):
        return decoder
    random = np.random.default_rng(SEED)
    count = min(tokens.num_sequences, SAMPLED_SEQUENCES)
    sampled = random.choice(tokens.num_sequences, count, replace=False)
    shown = sorted(sampled[:SHOWN_SEQUENCES].tolist())
    documents, thoughts = read_openings(tokens, decoder, sorted(sampled.tolist()))
    rows = read_rows(lineage, shown) if lineage.name in manifest.files else {}
    return Texts(
        documents,
        thoughts,
        tuple(read_sequence(tokens, decoder, number, rows.get(number)) for number in shown),
        tokens.has("mask"),
    )
