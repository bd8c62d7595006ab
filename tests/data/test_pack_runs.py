"""`pack` in parts, on several processes and machines, twice, and of rows that must not come twice."""

import json
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import trajectory

from tpt_megatron.artifact import manifest_of_files, verify_manifest, write_manifest
from tpt_megatron.config.schema import CorpusConfig, DataConfig
from tpt_megatron.data import blocks
from tpt_megatron.data.dataset import Samples
from tpt_megatron.data.indexed import IndexedDataset
from tpt_megatron.data.pack import PackSummary, pack
from tpt_megatron.data.piece import Piece
from tpt_megatron.data.quarantine import numbered
from tpt_megatron.errors import ConfigError, DamagedError, InputError
from tpt_megatron.records import TRAJECTORY_SCHEMA
from tpt_megatron.tokenizer import load_facts

load_once = cache(load_facts)  # a process of its own reads a tokenizer: seconds
WORDS = ["think", "question", "steps", "water", "boils", "prime", "number"]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpt_megatron.data.pack.load_facts", load_once)
    monkeypatch.setattr("tpt_megatron.data.pack.plan_blocks", partial(blocks.plan_blocks, block_bytes=2000))


@pytest.fixture
def corpus(tmp_path: Path) -> CorpusConfig:
    rng = np.random.default_rng(0)
    rows = [
        {"id": f"d{number}", "text": " ".join(rng.choice(WORDS, 30)), "kind": "ab"[number % 2]}
        for number in range(40)
    ]
    return write(tmp_path / "corpus.jsonl", rows)


def write(path: Path, rows: list[dict[str, Any]]) -> CorpusConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return CorpusConfig(paths=(str(path),), source="web")


def run(tokenizer: Path, prefix: Path, corpus: CorpusConfig, **data: Any) -> PackSummary:
    settings = {"tokenizer": str(tokenizer), "output": str(prefix), "style": "none", **data}
    return pack(DataConfig(**settings), corpus, lambda rows: None)


def contents(prefix: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(prefix.parent.iterdir())}


def ids_in(prefix: Path) -> list[str]:
    ids: list[str] = pq.read_table(f"{prefix}.lineage.parquet")["id"].to_pylist()
    return ids


def test_shards_in_any_order_and_processes_give_the_same_bytes(
    tmp_path: Path, tiny_tokenizer: Path, corpus: CorpusConfig
) -> None:
    run(tiny_tokenizer, tmp_path / "whole" / "x", corpus)
    whole = contents(tmp_path / "whole" / "x")
    parts = [run(tiny_tokenizer, tmp_path / "parts" / "x", corpus, shard=f"{i}/3") for i in (2, 0, 1)]
    assert [part.shard for part in parts] == ["2/3", "0/3", "1/3"]
    assert sum(part.rows for part in parts) == 40
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["x.work"]
    done = run(tiny_tokenizer, tmp_path / "parts" / "x", corpus)
    assert (done.rows, done.sequences) == (40, 40)
    assert contents(tmp_path / "parts" / "x") == whole
    run(tiny_tokenizer, tmp_path / "two" / "x", corpus, workers=2)
    assert contents(tmp_path / "two" / "x") == whole


def test_a_ray_cluster_gives_the_same_bytes(
    tmp_path: Path, tiny_tokenizer: Path, corpus: CorpusConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="Ray is an extra: pip install 'tpt-megatron[ray]'")
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    run(tiny_tokenizer, tmp_path / "whole" / "x", corpus)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
    try:
        run(tiny_tokenizer, tmp_path / "ray" / "x", corpus, workers=2, executor="ray")
        wrong = corpus.model_copy(update={"text_key": "nothing"})
        with pytest.raises(InputError, match="no document to pack"):
            run(tiny_tokenizer, tmp_path / "bad" / "x", wrong, workers=1, executor="ray")
    finally:
        ray.shutdown()
    assert contents(tmp_path / "ray" / "x") == contents(tmp_path / "whole" / "x")


@pytest.mark.parametrize(
    ("change", "named"),
    [({"style": "none", "begin_token": "<think>"}, "data.begin_token was None and is '<think>'"),
     ({"filter": {"names": ("document_length",), "min_document_characters": 3}}, "data.filter.names")],
)  # fmt: skip
def test_other_settings_are_refused_by_name(
    tmp_path: Path, tiny_tokenizer: Path, corpus: CorpusConfig, change: dict[str, Any], named: str
) -> None:
    run(tiny_tokenizer, tmp_path / "x", corpus, shard="0/3")
    with pytest.raises(InputError, match=named):
        run(tiny_tokenizer, tmp_path / "x", corpus, shard="1/3", **change)


def test_another_input_is_refused(tmp_path: Path, tiny_tokenizer: Path, corpus: CorpusConfig) -> None:
    run(tiny_tokenizer, tmp_path / "x", corpus, shard="0/3")
    with open(corpus.paths[0], "a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(InputError, match=r"inputs\.hash was"):
        run(tiny_tokenizer, tmp_path / "x", corpus)


def test_what_is_done_is_not_done_again(tmp_path: Path, tiny_tokenizer: Path, corpus: CorpusConfig) -> None:
    first = run(tiny_tokenizer, tmp_path / "out" / "x", corpus)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    again = run(tiny_tokenizer, tmp_path / "out" / "x", corpus, workers=2)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert (again.tokens, again.rows, again.megabytes) == (first.tokens, first.rows, first.megabytes)
    assert (first.encoder, again.encoder) == ("gigatoken", "")
    other = run(tiny_tokenizer, tmp_path / "out" / "x", corpus, begin_token="<think>")
    assert other.tokens == first.tokens + 40


def test_a_changed_bit_in_a_piece_is_named(
    tmp_path: Path, tiny_tokenizer: Path, corpus: CorpusConfig
) -> None:
    run(tiny_tokenizer, tmp_path / "x", corpus, shard="0/1")
    piece = sorted((tmp_path / "x.work").glob("*.piece"))[1]
    raw = bytearray(piece.read_bytes())
    raw[len(raw) // 5] ^= 1
    piece.write_bytes(raw)
    with pytest.raises(DamagedError, match=f"{piece.name}.*remove it and run"):
        run(tiny_tokenizer, tmp_path / "x", corpus)
    piece.unlink()
    run(tiny_tokenizer, tmp_path / "x", corpus)
    verify_manifest(tmp_path / "x.manifest.json")


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, tiny_tokenizer: Path, corpus: CorpusConfig
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file.*(Not a directory|File exists)"):
        run(tiny_tokenizer, tmp_path / "file" / "x", corpus)


ROWS = [
    {"id": "a", "text": "water boils"},
    {"id": "b", "text": "prime number"},
    {"id": "c", "text": "water boils"},  # another id, the same text
    {"id": "a", "text": "water boils"},  # the same row again
    {"id": "b", "text": "another text"},  # another text under an id
    {"id": "d", "text": "another text"},  # stays: its like is in quarantine
]


@pytest.mark.parametrize(
    ("exact", "kept", "duplicates"), [(True, ["a", "b", "d"], 2), (False, ["a", "b", "c", "a", "d"], 0)]
)
def test_duplicates(
    tmp_path: Path, tiny_tokenizer: Path, exact: bool, kept: list[str], duplicates: int
) -> None:
    done = run(tiny_tokenizer, tmp_path / "x", write(tmp_path / "c.jsonl", ROWS), exact_dedup=exact)
    assert ids_in(tmp_path / "x") == kept
    assert done.left_out == ({"duplicate": duplicates} if duplicates else {})
    assert done.quarantined == 1
    assert "'b': another text came before" in (tmp_path / "x.quarantine.jsonl").read_text()
    assert done.rows == len(ROWS)


def test_near_duplicates_and_samples_of_a_document(tmp_path: Path, tiny_tokenizer: Path) -> None:
    """Two thoughts about one document both stay; of two near documents the first does."""
    rng = np.random.default_rng(0)
    text = " ".join(f"{word}{rng.integers(50)}" for word in rng.choice(WORDS, 200))
    near = f"{text} end"
    rows = [("a", 0, text), ("a", 1, text), ("b", 0, near), ("b", 1, near), ("c", 0, "other")]
    table = pa.Table.from_pylist(
        [{**trajectory(name, words, "so", "web"), "sample": sample} for name, sample, words in rows],
        TRAJECTORY_SCHEMA,
    )
    (tmp_path / "t").mkdir()
    pq.write_table(table, tmp_path / "t" / "p.parquet")
    about = {"counts": {"in": 3, "pending": 0}}
    write_manifest(tmp_path / "t" / "manifest.json", manifest_of_files(tmp_path / "t", "trajectories", about))
    inputs = (str(tmp_path / "t"),)
    plain = run(tiny_tokenizer, tmp_path / "plain", CorpusConfig(), style="think_tags", inputs=inputs)
    assert (plain.sequences, plain.quarantined) == (5, 0)
    done = run(
        tiny_tokenizer, tmp_path / "near", CorpusConfig(), style="think_tags", inputs=inputs,
        filter={"near_duplicates": True},
    )  # fmt: skip
    assert ids_in(tmp_path / "near") == ["a", "a", "c"]
    assert done.left_out == {"near_duplicate": 2}
    half = plain.document_tokens - 1
    run(tiny_tokenizer, tmp_path / "half", CorpusConfig(), style="think_tags", inputs=inputs, raw_tokens=half)
    assert sorted(ids_in(tmp_path / "half")) in (["a", "a", "c"], ["a", "a", "b", "b"], ["b", "b", "c"])


def test_bad_rows_of_every_block_have_their_lines(
    tmp_path: Path, tiny_tokenizer: Path, corpus: CorpusConfig
) -> None:
    path = Path(corpus.paths[0])
    lines = path.read_text().splitlines()
    bad = [0, 1, 7, 20, 21, 39]
    for number in bad:
        lines[number] = "broken"
    path.write_text("\n".join(lines))
    done = run(tiny_tokenizer, tmp_path / "x", corpus)
    assert (done.sequences, done.quarantined) == (34, 6)
    rows = [json.loads(line) for line in (tmp_path / "x.quarantine.jsonl").read_text().splitlines()]
    assert [(row["file"], row["line"]) for row in rows] == [(str(path), number + 1) for number in bad]
    raw = path.read_bytes()
    assert all(raw[row["offset"] :].startswith(b"broken") for row in rows)
    gone = {"file": "gone", "line": 0, "offset": 5}
    assert list(numbered([gone])) == [gone]


def test_thoughts_about_one_document_are_one_document_without_them(
    tmp_path: Path, tiny_tokenizer: Path
) -> None:
    rows = [{**trajectory("a", "water", "so", "web"), "sample": sample} for sample in range(3)]
    (tmp_path / "t").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, TRAJECTORY_SCHEMA), tmp_path / "t" / "p.parquet")
    about = {"counts": {"in": 1, "pending": 0}}
    write_manifest(tmp_path / "t" / "manifest.json", manifest_of_files(tmp_path / "t", "trajectories", about))
    inputs = (str(tmp_path / "t"),)
    thinking = run(tiny_tokenizer, tmp_path / "x", CorpusConfig(), style="think_tags", inputs=inputs)
    vanilla = run(tiny_tokenizer, tmp_path / "y", CorpusConfig(), inputs=inputs)
    assert (thinking.sequences, vanilla.sequences, vanilla.left_out) == (3, 1, {"duplicate": 2})


def test_many_bad_rows_wait_in_small_pieces(
    tmp_path: Path, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tpt_megatron.data.packer.PIECE_ROWS", 300)
    monkeypatch.setattr("tpt_megatron.data.chunks.MAX_BATCH_ROWS", 100)
    (tmp_path / "c.jsonl").write_text("x\n" * 900 + '{"text": "water"}\n')
    config = CorpusConfig(paths=(str(tmp_path / "c.jsonl"),))
    run(tiny_tokenizer, tmp_path / "x", config, shard="0/1")
    pieces = [Piece(path) for path in sorted((tmp_path / "x.work").glob("*.piece"))]
    assert max(piece.rows for piece in pieces) <= 400
    done = run(tiny_tokenizer, tmp_path / "x", config)
    assert (done.sequences, done.quarantined) == (1, 900)


def test_conversations_are_near_by_what_they_say(tmp_path: Path, tiny_tokenizer: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(6):
        words = " ".join(rng.choice(WORDS, 60))
        turns = [{"role": "user", "content": words}, {"role": "assistant", "content": words[::-1]}]
        rows.append({"messages": turns})
    template = tmp_path / "t.jinja"
    answer = "{% generation %}{{ m.content }}{% endgeneration %}"
    text = "{% for m in messages %}{% if m.role == 'assistant' %}" + answer
    text += "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    template.write_text(text)
    settings = {"style": "chat", "chat_template": str(template), "filter": {"near_duplicates": True}}
    config = write(tmp_path / "c.jsonl", rows)
    done = run(tiny_tokenizer, tmp_path / "x", config, **settings)
    assert (done.sequences, done.left_out) == (6, {})
    run(tiny_tokenizer, tmp_path / "y", config, shard="0/1", **settings)
    template.write_text(text + " ")
    with pytest.raises(InputError, match="template was"):
        run(tiny_tokenizer, tmp_path / "y", config, **settings)


def test_a_budget_that_is_not_there_is_told(
    tmp_path: Path, tiny_tokenizer: Path, corpus: CorpusConfig
) -> None:
    done = run(tiny_tokenizer, tmp_path / "x", corpus, raw_tokens=10**9)
    assert done.sequences == 40
    assert f"there are {done.document_tokens} in all" in (done.warning or "")


def test_a_cut_dataset_that_was_done_is_named(
    tmp_path: Path, tiny_tokenizer: Path, corpus: CorpusConfig
) -> None:
    run(tiny_tokenizer, tmp_path / "x", corpus)
    with open(tmp_path / "x.bin", "r+b") as file:
        file.truncate(10)
    with pytest.raises(DamagedError, match=r"x\.bin: wrong size.*remove .*x\.manifest\.json and run"):
        run(tiny_tokenizer, tmp_path / "x", corpus)


@pytest.mark.parametrize("order", [1, -1])
def test_a_sample_of_raw_tokens_is_the_same_in_any_order(
    tmp_path: Path, tiny_tokenizer: Path, corpus: CorpusConfig, order: int
) -> None:
    rows = [json.loads(line) for line in Path(corpus.paths[0]).read_text().splitlines()]
    whole = run(tiny_tokenizer, tmp_path / "whole", corpus)
    config = write(tmp_path / "o.jsonl", rows[::order])
    budget = whole.tokens // 3
    done = run(tiny_tokenizer, tmp_path / "x", config, raw_tokens=budget)
    assert budget - 400 < done.document_tokens <= budget
    assert done.left_out == {"not_sampled": 40 - done.sequences}
    expected = tmp_path / "first"
    run(tiny_tokenizer, expected, corpus, raw_tokens=budget)
    assert sorted(ids_in(tmp_path / "x")) == sorted(ids_in(expected))


def test_filters_are_counted_and_metadata_kept(
    tmp_path: Path, tiny_tokenizer: Path, corpus: CorpusConfig
) -> None:
    rows = [json.loads(line) for line in Path(corpus.paths[0]).read_text().splitlines()]
    longest = sorted(len(row["text"]) for row in rows)[-10]
    done = run(
        tiny_tokenizer, tmp_path / "x", corpus, lineage_keys=("kind",),
        filter={"names": ("document_length",), "min_document_characters": longest},
    )  # fmt: skip
    kept = [row for row in rows if len(row["text"]) >= longest]
    assert ids_in(tmp_path / "x") == [row["id"] for row in kept]
    assert done.left_out == {"filter:document_length": 40 - len(kept)}
    metas = pq.read_table(tmp_path / "x.lineage.parquet")["meta"].to_pylist()
    assert [json.loads(meta) for meta in metas] == [{"kind": row["kind"]} for row in kept]


def test_long_pairs_under_each_policy(
    tmp_path: Path, tiny_tokenizer: Path, make_trajectories: Callable[..., Path]
) -> None:
    rows = [("a", "water", "boils " * 40), ("b", "prime", "number")]
    inputs = (str(make_trajectories(tmp_path / "t", [rows])),)
    window = {"style": "think_tags", "inputs": inputs, "sequence_length": 32}
    split = run(tiny_tokenizer, tmp_path / "split", CorpusConfig(), **window)
    cut = run(tiny_tokenizer, tmp_path / "cut", CorpusConfig(), long_documents="truncate_thought", **window)
    drop = run(tiny_tokenizer, tmp_path / "drop", CorpusConfig(), long_documents="drop", **window)
    assert [len(IndexedDataset(tmp_path / name).sequence(0)) for name in ("cut", "drop")] == [
        32, len(IndexedDataset(tmp_path / "split").sequence(1)),
    ]  # fmt: skip
    assert (split.sequences, cut.sequences, drop.sequences) == (2, 2, 1)
    assert drop.left_out == {"dropped_long": 1}
    noted = verify_manifest(tmp_path / "cut.manifest.json").about["counts"]["noted"]
    assert noted == {"thought_cut_to_window": 1}


def test_best_fit_is_planned_while_packing(
    tmp_path: Path, tiny_tokenizer: Path, corpus: CorpusConfig
) -> None:
    run(tiny_tokenizer, tmp_path / "x", corpus, packing="best_fit", sequence_length=256)
    facts = verify_manifest(tmp_path / "x.manifest.json").about["counts"]["plan"]
    dataset = IndexedDataset(tmp_path / "x")
    assert facts["items"] == dataset.num_sequences
    data = DataConfig(blend=((str(tmp_path / "x"), 1.0),), packing="best_fit", sequence_length=256)
    samples = Samples(data, 0, 1000)
    seen = sorted(sample for i in range(facts["bins"]) for sample in documents(samples[i]))
    assert seen == sorted(tuple(dataset.sequence(i).tolist()) for i in range(dataset.num_sequences))
    with pytest.raises(ConfigError, match="sequence_length"):
        Samples(data.model_copy(update={"sequence_length": 128}), 0, 1000)


def documents(sample: Any) -> list[tuple[int, ...]]:
    """The documents of a best_fit sample; padding is a document without a label."""
    bounds = sample.cu_seqlens.tolist()
    pieces = [slice(*pair) for pair in pairwise(bounds)]
    return [tuple(sample.tokens[piece].tolist()) for piece in pieces if (sample.labels[piece] != -100).any()]


def test_the_lock_keeps_a_second_assembler_out(
    tmp_path: Path, tiny_tokenizer: Path, corpus: CorpusConfig
) -> None:
    from tpt_megatron.data.assemble import sole_packer

    run(tiny_tokenizer, tmp_path / "x", corpus, shard="0/1")
    with sole_packer(tmp_path / "x.work"), pytest.raises(InputError, match="another process"):
        run(tiny_tokenizer, tmp_path / "x", corpus)
    run(tiny_tokenizer, tmp_path / "x", corpus)
    assert not (tmp_path / "x.work").exists()


@pytest.mark.parametrize("shard", ["3", "3/3", "-1/3", "a/b", "1/"])
def test_a_shard_that_cannot_be_is_named(
    tmp_path: Path, tiny_tokenizer: Path, corpus: CorpusConfig, shard: str
) -> None:
    with pytest.raises(ConfigError, match=r"data\.shard, got"):
        run(tiny_tokenizer, tmp_path / "x", corpus, shard=shard)
