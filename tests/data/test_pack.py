"""`pack` from end to end: what goes in comes out, counted, or is in quarantine by name."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tpt_megatron.artifact import verify_manifest
from tpt_megatron.config.schema import CorpusConfig, DataConfig
from tpt_megatron.data.dataset import Samples
from tpt_megatron.data.indexed import IndexedDataset
from tpt_megatron.data.pack import PackSummary, pack
from tpt_megatron.data.tokenize import Encoded, ReferenceEncoder
from tpt_megatron.errors import ConfigError, InputError
from tpt_megatron.tokenizer import TextTokenizer, TokenizerFacts, load_facts

load_once = cache(load_facts)  # a process of its own reads a tokenizer: seconds


@pytest.fixture(autouse=True)
def _one_reading_of_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpt_megatron.data.pack.load_facts", load_once)


FILES = [
    [("a", "The quick brown fox.", "Let me see."), ("b", "é </think> <|endoftext|>", "x\n")],
    [("c", "def add(left, right):\n", "")],
]
TEMPLATES = {
    "think_tags": "{text}<think>\n{thinking}\n</think><|endoftext|>",
    "plain": "{text}\n\n{thinking}<|endoftext|>",
    "prefix": "<think>\n{thinking}\n</think>\n{text}<|endoftext|>",
    "none": "{text}<|endoftext|>",
}


def run(tmp_path: Path, tokenizer: Path, corpus: CorpusConfig | None = None, **data: Any) -> PackSummary:
    config = DataConfig(tokenizer=str(tokenizer), output=str(tmp_path / "out" / "x"), **data)
    return pack(config, corpus or CorpusConfig(), lambda rows: None)


@pytest.mark.parametrize("batch_characters", [1, 2**20])
@pytest.mark.parametrize("style", TEMPLATES)
def test_trajectories_become_sequences_in_order(
    tmp_path: Path,
    tiny_tokenizer: Path,
    make_trajectories: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    style: str,
    batch_characters: int,
) -> None:
    monkeypatch.setattr("tpt_megatron.data.packer.BATCH_CHARACTERS", batch_characters)
    again = [[(f"{row[0]}2", f"{row[1]}!", row[2]) for row in file] for file in FILES]
    folders = [make_trajectories(tmp_path / n, f, n) for n, f in (("web", FILES), ("code", again))]
    summary = run(tmp_path, tiny_tokenizer, style=style, inputs=tuple(map(str, folders)))
    dataset, tokenizer = IndexedDataset(tmp_path / "out" / "x"), TextTokenizer(str(tiny_tokenizer))
    rows = [row for file in (*FILES, *again) for row in file]
    texts = [TEMPLATES[style].format(text=text, thinking=thinking) for _, text, thinking in rows]
    assert [tokenizer.decode(dataset.sequence(index).tolist()) for index in range(6)] == texts
    end = tokenizer.control_id("<|endoftext|>", "")
    assert [dataset.sequence(index).tolist().count(end) for index in range(6)] == [1] * 6
    assert dataset.parts["source"].tolist() == [0, 0, 0, 1, 1, 1]
    about = verify_manifest(tmp_path / "out" / "x.manifest.json").about
    assert about["sources"] == ["web", "code"]
    assert about["style"] == style
    assert about["tokenizer"] == {
        "name": str(tiny_tokenizer), "fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size,
    }  # fmt: skip
    spans = (dataset.parts["thinking_end"] - dataset.parts["thinking_start"]).tolist()
    counts = about["counts"]
    assert counts["thinking_tokens"] == summary.thinking_tokens == sum(spans)
    assert counts["tokens"] == summary.tokens == dataset.num_tokens
    assert counts["document_tokens"] + counts["thinking_tokens"] == counts["tokens"]
    assert (counts["in"], counts["sequences"], counts["quarantined"]) == (6, 6, 0)
    assert counts["by_source"]["web"]["thinking_tokens"] * 2 == counts["thinking_tokens"]
    assert sum(own["tokens"] for own in counts["by_source"].values()) == counts["tokens"]
    used = [text + (thinking if style != "none" else "") for _, text, thinking in rows]
    assert summary.megabytes == sum(len(part.encode()) for part in used) / 1e6


def test_lineage_has_a_row_per_sequence(
    tmp_path: Path,
    tiny_tokenizer: Path,
    make_trajectories: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tpt_megatron.data.assemble.LINEAGE_ROWS", 2)
    folder = make_trajectories(tmp_path / "t", FILES, "web")
    run(tmp_path, tiny_tokenizer, inputs=(str(folder),))
    dataset = IndexedDataset(tmp_path / "out" / "x")
    rows = pq.read_table(tmp_path / "out" / "x.lineage.parquet").to_pylist()
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    assert {(row["sample"], row["source"], row["finish_reason"]) for row in rows} == {(0, "web", "stop")}
    lengths = [len(dataset.sequence(index)) for index in range(3)]
    assert [row["document_tokens"] + row["thinking_tokens"] for row in rows] == lengths
    spans = (dataset.parts["thinking_end"] - dataset.parts["thinking_start"]).tolist()
    assert [row["thinking_tokens"] for row in rows] == spans


def test_a_corpus_with_bad_rows_reconciles(tmp_path: Path, tiny_tokenizer: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"text": "one"}\nbroken\n{"text": "two"}\n{"text": ""}\n')
    reported: list[int] = []
    data = DataConfig(tokenizer=str(tiny_tokenizer), output=str(tmp_path / "x"), style="none")
    summary = pack(data, CorpusConfig(paths=(str(path),), source="web"), reported.append)
    counts = verify_manifest(tmp_path / "x.manifest.json").about["counts"]
    assert (counts["in"], counts["sequences"], counts["quarantined"]) == (4, 2, 2)
    assert (summary.sequences, summary.quarantined, sum(reported)) == (2, 2, 4)
    lines = [json.loads(line) for line in (tmp_path / "x.quarantine.jsonl").read_text().splitlines()]
    assert [(line["file"], line["line"]) for line in lines] == [(str(path), 2), (str(path), 4)]
    assert "x.quarantine.jsonl" in IndexedDataset(tmp_path / "x").manifest.files
    path.write_bytes(b'{"text": "one"}\n')
    pack(data, CorpusConfig(paths=(str(path),)), reported.append)
    assert not (tmp_path / "x.quarantine.jsonl").exists()
    verify_manifest(tmp_path / "x.manifest.json")


def test_a_tokenizer_that_spells_a_control_token_is_not_believed(
    tmp_path: Path, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Leaky:
        name = "leaky"

        def __init__(self, facts: TokenizerFacts) -> None:
            self.encoder, self.end = ReferenceEncoder(facts), facts.control_id("<|endoftext|>", "")

        def encode(self, texts: Sequence[str]) -> Encoded:
            encoded = self.encoder.encode(texts)
            lists = [encoded.ids[a:b].tolist() for a, b in pairwise(encoded.offsets.tolist())]
            lists = [ids + [self.end] * ("leak" in text) for text, ids in zip(texts, lists, strict=True)]
            offsets = np.cumsum([0, *map(len, lists)])
            return Encoded(np.array([i for ids in lists for i in ids], np.uint32), offsets)

    monkeypatch.setattr("tpt_megatron.data.packer.build_encoder", lambda facts, name: Leaky(facts))
    (tmp_path / "c.jsonl").write_text('{"text": "fine"}\n{"text": "leak", "id": "bad-one"}\n')
    corpus = CorpusConfig(paths=(str(tmp_path / "c.jsonl"),))
    summary = run(tmp_path, tiny_tokenizer, corpus, style="none")
    assert (summary.sequences, summary.quarantined) == (1, 1)
    assert "bad-one" in (tmp_path / "out" / "x.quarantine.jsonl").read_text()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"output": ""}, ConfigError, "data.output"),
        ({"output": "folder/"}, ConfigError, "data.output"),
        ({"tokenizer": ""}, ConfigError, "data.tokenizer"),
        ({"style": "plain"}, ConfigError, "data.inputs"),
        ({"end_token": "<gone>"}, ConfigError, "data.end_token"),
        ({"inputs": ("nowhere",)}, InputError, "nowhere"),
    ],
)
def test_what_cannot_be_packed_is_named(
    tmp_path: Path, tiny_tokenizer: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "fine"}\n')
    keys = {"tokenizer": str(tiny_tokenizer), "output": str(tmp_path / "x"), "style": "none", **change}
    with pytest.raises(error, match=message):
        pack(DataConfig(**keys), CorpusConfig(paths=(str(tmp_path / "c.jsonl"),)), lambda rows: None)
    assert [path.name for path in tmp_path.iterdir()] == ["c.jsonl"]


def test_nothing_left_is_an_error_and_leaves_nothing(tmp_path: Path, tiny_tokenizer: Path) -> None:
    (tmp_path / "c.jsonl").write_text("broken\n")
    with pytest.raises(InputError, match=r"no document to pack, 1 bad rows.*c\.jsonl"):
        run(tmp_path, tiny_tokenizer, CorpusConfig(paths=(str(tmp_path / "c.jsonl"),)), style="none")
    assert list((tmp_path / "out").iterdir()) == []


def test_packing_twice_gives_the_same_bytes(
    tmp_path: Path, tiny_tokenizer: Path, make_trajectories: Callable[..., Path]
) -> None:
    folder = make_trajectories(tmp_path / "t", FILES)
    contents = []
    for _ in range(2):
        run(tmp_path, tiny_tokenizer, inputs=(str(folder),))
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()})
    assert contents[0] == contents[1]


def test_from_trajectories_to_samples(
    tmp_path: Path, tiny_tokenizer: Path, make_trajectories: Callable[..., Path]
) -> None:
    """Which labels are thought, told by decoding them."""
    folder = make_trajectories(tmp_path / "t", [[("a", "The quick brown fox.", "Let me see.")]])
    run(tmp_path, tiny_tokenizer, inputs=(str(folder),))
    tokenizer = TextTokenizer(str(tiny_tokenizer))
    length = IndexedDataset(tmp_path / "out" / "x").num_tokens - 1
    data = DataConfig(blend=((str(tmp_path / "out" / "x"), 1.0),), sequence_length=length)
    sample = Samples(data, 0, tokenizer.vocab_size)[0]
    assert tokenizer.decode(sample.labels[sample.thinking].tolist()) == "<think>\nLet me see.\n</think>"
