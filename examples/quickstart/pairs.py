"""The generator's training set: documents with thoughts, as a finished folder of trajectories for `tpt pack`.

48 pairs are written by hand and repeated; the rule-based explainer gives one to every document of the
generator's split, so that the tiny generator sees enough text to learn the form.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from corpus import read_documents
from explain import explain

from tpt_megatron.artifact import atomic_file, manifest_of_files, write_manifest
from tpt_megatron.errors import InputError
from tpt_megatron.records import TRAJECTORY_SCHEMA, Document, Trajectory, text_id
from tpt_megatron.tokenizer import TextTokenizer

BY_HAND, BY_RULES = "hand", "rule-based explainer"
PAIRS = Path(__file__).with_name("pairs.jsonl")


@dataclass(frozen=True)
class Pair:
    """A document and a thought about it; `author` is BY_HAND or BY_RULES."""

    document: Document
    thinking: str
    author: str


def pairs_by_hand(path: Path) -> list[Pair]:
    """The pairs of a JSON lines file of `{"text", "thinking"}`.

    Raises InputError naming the line that is no such pair.
    """
    pairs = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
            text, thinking = str(row["text"]), str(row["thinking"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}:{number}: not a pair", got=repr(error), expected='{"text": ..., "thinking": ...}'
            ) from error
        pairs.append(Pair(Document(text_id(text), text, BY_HAND), thinking, BY_HAND))
    return pairs


def pairs_by_rules(documents: Sequence[Document]) -> list[Pair]:
    """One pair for each document, by the rules of explain.py."""
    return [Pair(document, explain(document), BY_RULES) for document in documents]


def trajectories(pairs: Sequence[Pair], repeats: int, tokenizer: TextTokenizer) -> list[Trajectory]:
    """A row per pair and sample: those by hand as samples 0 .. repeats - 1, the others once.

    Tokens are counted as `tpt think` counts them: the document's and the thought's own, without tags.
    """
    document_ids = tokenizer.encode_plain([pair.document.text for pair in pairs])
    thinking_ids = tokenizer.encode_plain([pair.thinking for pair in pairs])
    return [
        Trajectory(
            id=pair.document.id,
            sample=sample,
            text=pair.document.text,
            thinking=pair.thinking,
            finish_reason="stop",
            prompt="none",
            generator=pair.author,
            revision="",
            seed=0,
            seed_honored=True,  # nothing here is drawn
            document_tokens=len(of_document),
            thinking_tokens=len(of_thinking),
            truncated=False,
            source=pair.document.source,
            meta=json.dumps(dict(pair.document.meta), sort_keys=True),
        )
        for pair, of_document, of_thinking in zip(pairs, document_ids, thinking_ids, strict=True)
        for sample in range(repeats if pair.author == BY_HAND else 1)
    ]


def write_trajectories(output: Path, rows: Sequence[Trajectory]) -> None:
    """Write the rows as a folder that is finished: all in, all out, nothing pending."""
    columns = [[getattr(row, name) for row in rows] for name in TRAJECTORY_SCHEMA.names]
    with atomic_file(output / "part-00000.parquet") as file:
        pq.write_table(pa.table(columns, schema=TRAJECTORY_SCHEMA), file, compression="zstd")
    about = {
        "counts": {"documents_in": len(rows), "out": len(rows), "quarantined": 0, "pending": 0},
        "document_tokens": sum(row.document_tokens for row in rows),
        "thinking_tokens": sum(row.thinking_tokens for row in rows),
        "finish_reasons": {"stop": len(rows), "length": 0},
        "generator": f"{BY_HAND}, {BY_RULES}",
        "revision": "",
        "prompt": "none",
        "by_generator": {a: sum(row.generator == a for row in rows) for a in (BY_HAND, BY_RULES)},
    }
    write_manifest(output / "manifest.json", manifest_of_files(output, "trajectories", about))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, help="folder that corpus.py wrote")
    parser.add_argument("output", type=Path, help="folder for the trajectories")
    parser.add_argument("--tokenizer", required=True, help="folder that tokenizer.py wrote, or a hub name")
    parser.add_argument("--pairs", type=Path, default=PAIRS, help="pairs written by hand")
    parser.add_argument("--repeats", type=int, default=8, help="how often each of them is repeated")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        raise InputError("--repeats", got=arguments.repeats, expected="at least 1")
    documents = read_documents(arguments.corpus / "generator.jsonl")
    pairs = [*pairs_by_hand(arguments.pairs), *pairs_by_rules(documents)]
    rows = trajectories(pairs, arguments.repeats, TextTokenizer(arguments.tokenizer))
    write_trajectories(arguments.output, rows)
    print(f"pairs: {len(pairs)} pairs as {len(rows)} trajectories -> {arguments.output}")


if __name__ == "__main__":
    main()
