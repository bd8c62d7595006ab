"""Blocks: the same cut every time, every row in exactly one, read on from any row."""

import gzip
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tpt_megatron.config.schema import CorpusConfig
from tpt_megatron.data.blocks import Block, Plan, Span, plan_blocks, read_block
from tpt_megatron.data.rows import RowBatch
from tpt_megatron.data.source import open_corpus
from tpt_megatron.errors import ConfigError, DamagedError, InputError, TptError
from tpt_megatron.records import BadRow, Document

KIB = 1024


def write_rows(folder: Path, rows: list[Any], suffix: str, name: str = "x") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{suffix}"
    raw = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    else:
        path.write_bytes({".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)(raw))
    return str(path)


def good_rows(count: int) -> list[dict[str, Any]]:
    return [{"id": f"d{i}", "text": f"text {i} " * (i % 50 + 1), "n": i} for i in range(count)]


def read(plan: Plan, corpus: CorpusConfig, style: str = "none", **options: Any) -> list[RowBatch]:
    options.setdefault("metadata", False)
    return [batch for block in plan.blocks for batch in read_block(block, corpus, style, **options)]


def ids(batches: list[RowBatch]) -> list[str]:
    return [name for batch in batches for name in batch.ids]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
@pytest.mark.parametrize("block_bytes", [KIB, 10 * KIB, 2**26])
def test_every_row_is_in_one_block_in_order(tmp_path: Path, suffix: str, block_bytes: int) -> None:
    rows = good_rows(150)
    for name in "abc":
        write_rows(tmp_path, rows, suffix, name)
    corpus = CorpusConfig(paths=(str(tmp_path),), source="web")
    plan = plan_blocks((), corpus, "none", block_bytes)
    assert plan == plan_blocks((), corpus, "none", block_bytes) == pickle.loads(pickle.dumps(plan))
    assert [block.index for block in plan.blocks] == list(range(len(plan.blocks)))
    assert [Path(file.url).name[0] for file in plan.files] == ["a", "b", "c"]
    cut = len(plan.blocks) > 3
    assert cut == (suffix in (".jsonl", ".parquet") and block_bytes < 2**26)
    assert block_bytes < 2**26 or len(plan.blocks) == 1  # small files of one kind together
    batches = read(plan, corpus)
    assert ids(batches) == [row["id"] for row in rows] * 3
    assert [text for batch in batches for text in batch.texts] == [row["text"] for row in rows] * 3
    assert {source for batch in batches for source in batch.sources} == {"web"}
    metas = [meta for batch in batches for meta in batch.metas]
    assert metas[0] == {}
    assert all(meta is metas[0] for meta in metas)
    with_metas = read(plan, corpus, metadata=True)
    assert [meta for batch in with_metas for meta in batch.metas] == [{"n": row["n"]} for row in rows] * 3


def test_neighbours_are_grouped_by_kind_and_large_files_cut(tmp_path: Path) -> None:
    rows = good_rows(40)  # 9 KiB
    files = [
        write_rows(tmp_path, rows, s, n) for n, s in (("a", ".jsonl"), ("b", ".jsonl"), ("c", ".jsonl.gz"))
    ]
    files.append(write_rows(tmp_path, rows, ".jsonl", "d"))
    size = Path(files[0]).stat().st_size
    plan = plan_blocks((), CorpusConfig(paths=tuple(files)), "none", 2 * size)
    a, b, c, d = files
    assert [(block.kind, block.spans) for block in plan.blocks] == [
        ("jsonl", (Span(a, 0, size), Span(b, 0, size))),
        ("stream", (Span(c),)),
        ("jsonl", (Span(d, 0, size),)),
    ]
    halves = plan_blocks((), CorpusConfig(paths=(a,)), "none", size - 1)
    assert [block.spans for block in halves.blocks] == [(Span(a, 0, size // 2),), (Span(a, size // 2, size),)]


def mixed_rows() -> list[Any]:
    rows: list[Any] = [
        row if row["n"] % 7 else {"id": row["id"], "text": "", "n": row["n"]} for row in good_rows(300)
    ]
    rows[10:10] = ["", "{broken", "   "]
    rows[200:200] = ["", "", "[1]"]
    return rows


@pytest.mark.parametrize("where", [(), (("n", "<", 250.0),)])
@pytest.mark.parametrize("block_bytes", [4 * KIB, 2**26])
@pytest.mark.parametrize("characters", [1, 3000, 2**22])
def test_reading_goes_on_after_any_row(
    tmp_path: Path, where: Any, block_bytes: int, characters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tpt_megatron.data.chunks.MAX_BATCH_ROWS", 50)
    corpus = CorpusConfig(paths=(write_rows(tmp_path, mixed_rows(), ".jsonl"),), where=where)
    plan = plan_blocks((), corpus, "none", block_bytes)
    whole = read(plan, corpus, batch_characters=characters)
    assert sum(batch.rows for batch in whole) == 302
    assert sum(len(batch.bad) for batch in whole) == 2 + sum(
        1 for n in range(0, 300, 7) if not where or n < 250
    )
    assert sum(batch.left_out for batch in whole) == (50 if where else 0)
    assert all(batch.rows <= 50 for batch in whole)
    for block in plan.blocks:
        batches = list(read_block(block, corpus, "none", metadata=False))
        good, bad = ids(batches), [row for batch in batches for row in batch.bad]
        rows = sum(batch.rows for batch in batches)
        for skipped in {0, 1, 9, 10, 11, 12, 60, rows // 2, rows - 1, rows, rows + 5}:
            rest = list(read_block(block, corpus, "none", metadata=False, skip_rows=skipped))
            assert sum(batch.rows for batch in rest) == max(rows - skipped, 0)
            kept = ids(rest)
            assert kept == good[len(good) - len(kept) :]
            set_aside = [row for batch in rest for row in batch.bad]
            assert set_aside == bad[len(bad) - len(set_aside) :]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_batches_are_bounded_in_characters(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": f"{i} " + "x" * 9000} for i in range(400)]  # 3.6 MB
    corpus = CorpusConfig(paths=(write_rows(tmp_path, rows, suffix),))
    plan = plan_blocks((), corpus, "none")
    sizes = [sum(map(len, batch.texts)) for batch in read(plan, corpus, batch_characters=500_000)]
    assert sum(sizes) == sum(len(row["text"]) for row in rows)
    assert all(500_000 <= size < 500_000 + 2**18 + 9100 for size in sizes[:-1])
    assert [len(sizes) > 4, len(read(plan, corpus))] == [True, 1]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl.zst"])
def test_skipping_counts_rows_of_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    corpus = CorpusConfig(paths=(write_rows(tmp_path, good_rows(50), suffix),))
    (block,) = plan_blocks((), corpus, "none").blocks
    for skipped in (0, 6, 7, 8, 49, 50):
        batches = list(read_block(block, corpus, "none", metadata=False, skip_rows=skipped))
        assert ids(batches) == [f"d{i}" for i in range(skipped, 50)]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_limit_is_exact_and_nothing_is_read_beyond(tmp_path: Path, suffix: str) -> None:
    rows: list[Any] = [row if i % 3 else {**row, "text": ""} for i, row in enumerate(good_rows(90))]
    paths = tuple(write_rows(tmp_path, rows[i : i + 30], suffix, f"f{i}") for i in (0, 30, 60))
    for limit in (1, 19, 20, 21, 59, 60, 1000):
        corpus = CorpusConfig(paths=paths, max_documents=limit)
        plan = plan_blocks((), corpus, "none", KIB)
        assert len(plan.blocks) == 1
        batches = read(plan, corpus)
        assert ids(batches) == [row["id"] for i, row in enumerate(rows) if i % 3][:limit]
        bad = sum(len(batch.bad) for batch in batches)
        assert bad == sum(isinstance(row, BadRow) for row in open_corpus(corpus))
        for skipped in (1, 4, 30, 44):
            rest = read(plan, corpus, skip_rows=skipped)
            assert sum(b.rows for b in rest) == max(sum(b.rows for b in batches) - skipped, 0)


def test_where_leaves_rows_out_by_nested_columns(tmp_path: Path) -> None:
    levels = ["1", "3", None, "4"]
    rows = [{"text": str(i), "tax": {"level": {"code": c}, "x": [i]}, "n": i} for i, c in enumerate(levels)]
    rows.append({"text": "4", "tax": {"level": {"code": "3"}, "x": [4]}, "n": 9})
    where = (("tax.level.code", "in", "3, 4"), ("n", "!=", 9.0))
    for suffix in (".jsonl", ".parquet"):
        corpus = CorpusConfig(paths=(write_rows(tmp_path, rows, suffix),), where=where)
        (batch,) = read(plan_blocks((), corpus, "none"), corpus)
        assert (batch.texts, batch.left_out, batch.bad) == (["1", "3"], 3, [])


def test_where_that_does_not_compare_is_told_row_by_row(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path, [{"text": "a", "n": "5"}, {"text": "b", "n": 5}, {"text": "c", "n": True}], ".jsonl"
    )
    corpus = CorpusConfig(paths=(path,), where=(("n", ">", 3.0),))
    (batch,) = read(plan_blocks((), corpus, "none"), corpus)
    assert batch.texts == ["b"]
    assert ["str '5'" in batch.bad[0].reason, "bool True" in batch.bad[1].reason] == [True, True]
    with pytest.raises(ConfigError, match=r"corpus\.where: 'in' on n"):
        read(plan_blocks((), corpus, "none"), CorpusConfig(where=(("n", "in", 3.0),)))


@pytest.mark.parametrize("columns", [{"text": [1]}, {"body": ["x"]}, {"text": [b"x"]}])
def test_a_parquet_schema_without_text_is_refused_by_its_column(
    tmp_path: Path, columns: dict[str, Any]
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    corpus = CorpusConfig(paths=(str(tmp_path),))
    with pytest.raises(InputError, match=r"corpus\.text_key.*text"):
        read(plan_blocks((), corpus, "none"), corpus)
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "x.parquet")
    corpus = CorpusConfig(paths=(str(tmp_path),), where=(("score", ">", 1.0),))
    with pytest.raises(InputError, match=r"corpus\.where.*got score"):
        read(plan_blocks((), corpus, "none"), corpus)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_conversations(tmp_path: Path, suffix: str) -> None:
    turn, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "<think>x</think>y"}
    named = {**answer, "name": "<|im_start|>"}  # what is no role and no content goes no further
    rows = [{"messages": [turn, named], "source": "math"}, {"messages": [answer, turn], "source": None}]
    bad = [[], [{"role": "robot", "content": "x"}], [{"role": "user", "content": None}]]
    rows += [{"messages": messages, "source": "math"} for messages in bad]
    corpus = CorpusConfig(paths=(write_rows(tmp_path, rows, suffix),), source="mot", source_key="source")
    (batch,) = read(plan_blocks((), corpus, "chat"), corpus, "chat")
    assert batch.messages == [[turn, answer], [answer, turn]]
    assert batch.sources == ["math", "mot"]
    assert batch.texts == ["", ""]
    assert len(set(batch.ids)) == 2
    assert all(len(name) == 32 for name in batch.ids)
    reasons = [row.reason for row in batch.bad]
    assert [w in r for w, r in zip(("no messages", "'robot'", "no text"), reasons, strict=True)] == [True] * 3


def test_trajectories_in_the_order_of_their_files(
    tmp_path: Path, make_trajectories: Callable[..., Path]
) -> None:
    rows = [(f"{i:03}", f"text {i}", f"thought {i}") for i in range(30)]
    folder = make_trajectories(tmp_path / "t", [rows[:20], rows[20:]], "web")
    for block_bytes in (1, 2**26):
        plan = plan_blocks([str(folder)], CorpusConfig(), "think_tags", block_bytes)
        assert len(plan.blocks) == (2 if block_bytes == 1 else 1)
        batches = read(plan, CorpusConfig(), "think_tags", metadata=True)
        assert ids(batches) == [row[0] for row in rows]
        assert [t for b in batches for t in b.thoughts or ()] == [row[2] for row in rows]
        assert [s for b in batches for s in b.samples or ()] == [0] * 30
        assert {r for b in batches for r in b.finish_reasons or ()} == {"stop"}
        assert {s for b in batches for s in b.sources} == {"web"}
    assert ids(read(plan, CorpusConfig(), "think_tags", skip_rows=25)) == ["025", "026", "027", "028", "029"]
    mixed = [str(folder), write_rows(tmp_path / "c", good_rows(3), ".jsonl")]
    plan = plan_blocks(mixed, CorpusConfig(max_documents=2), "none")
    assert [block.kind for block in plan.blocks] == ["stream", "trajectories"]
    assert len(ids(read(plan, CorpusConfig(max_documents=2)))) == 32


def test_unfinished_or_damaged_trajectories_are_refused(
    tmp_path: Path, make_trajectories: Callable[..., Path]
) -> None:
    def plan(folder: Path) -> Plan:
        return plan_blocks([str(folder)], CorpusConfig(), "none")

    with pytest.raises(InputError, match="pending, got 3"):
        plan(make_trajectories(tmp_path / "pending", [[("a", "A", "p")]], pending=3))
    folder = make_trajectories(tmp_path / "t", [[("a", "A", "p")]])
    with pytest.raises(InputError, match="twice"):
        plan_blocks([str(folder), str(folder)], CorpusConfig(), "none")
    path = folder / "part-00000.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DamagedError, match="wrong size"):
        plan(folder)
    path.write_bytes(whole[:-6] + bytes(6))
    with pytest.raises(DamagedError, match="part-00000"):
        read(plan(folder), CorpusConfig())
    (folder / "manifest.json").unlink()
    (folder / "job.json").write_text("{}")  # a running job, whose files must not pass for a corpus
    with pytest.raises(InputError, match="no manifest"):
        plan(folder)


REFUSED: dict[str, tuple[list[str], str, str, type[TptError]]] = {
    "nothing": ([], "think_tags", r"data\.inputs is empty", ConfigError),
    "no paths": ([], "none", r"corpus\.paths is empty", InputError),
    "corpus": (["c"], "think_tags", "needs thoughts", ConfigError),
    "missing": (["gone"], "none", r"data\.inputs: .*gone.* does not exist", InputError),
    "thoughts": (["t"], "chat", "takes conversations", ConfigError),
}


@pytest.mark.parametrize("case", REFUSED)
def test_inputs_that_the_style_does_not_take(
    tmp_path: Path, make_trajectories: Callable[..., Path], case: str
) -> None:
    write_rows(tmp_path / "c", good_rows(1), ".jsonl")
    make_trajectories(tmp_path / "t", [[("a", "A", "p")]])
    names, style, message, error = REFUSED[case]
    with pytest.raises(error, match=message):
        plan_blocks([str(tmp_path / name) for name in names], CorpusConfig(), style)


CHOICES = {"where": (("n", ">", 1.0),), "max_documents": 3}


@pytest.mark.parametrize("key", CHOICES)
def test_what_does_not_choose_among_trajectories_is_refused(
    tmp_path: Path, make_trajectories: Callable[..., Path], key: str
) -> None:
    folder = str(make_trajectories(tmp_path / "t", [[("a", "A", "p")]]))
    corpus = CorpusConfig(**{key: CHOICES[key]})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=rf"corpus\.{key} does not choose.*unset corpus\.{key}"):
        plan_blocks([folder], corpus, "think_tags")
    beside = write_rows(tmp_path / "c", good_rows(1), ".jsonl")
    assert len(plan_blocks([folder, beside], corpus, "none").files) == 2


@pytest.mark.parametrize("form", ["{}/tra*", "{}/*1", "file://{}/tra1", "file://{}/t*", "{}/tra*/**"])
def test_trajectories_named_by_a_glob_or_url_are_still_checked(
    tmp_path: Path, make_trajectories: Callable[..., Path], form: str
) -> None:
    folder = make_trajectories(tmp_path / "tra1", [[("a", "A", "p")]], pending=0)
    plan = plan_blocks([form.format(tmp_path)], CorpusConfig(), "think_tags")
    assert plan == plan_blocks([str(folder)], CorpusConfig(), "think_tags")
    (folder / "part-00000.parquet").write_bytes(b"short")
    with pytest.raises(DamagedError, match="wrong size"):
        plan_blocks([form.format(tmp_path)], CorpusConfig(), "none")


def test_a_glob_takes_finished_trajectories_only_and_corpora_beside_them(
    tmp_path: Path, make_trajectories: Callable[..., Path]
) -> None:
    make_trajectories(tmp_path / "d1", [[("a", "A", "p")]])
    write_rows(tmp_path / "d2", good_rows(2), ".jsonl")
    plan = plan_blocks([str(tmp_path / "d*")], CorpusConfig(), "none")
    assert [block.kind for block in plan.blocks] == ["jsonl", "trajectories"]
    make_trajectories(tmp_path / "d3", [[("b", "B", "p")]], pending=3)
    with pytest.raises(InputError, match="pending, got 3"):
        plan_blocks([str(tmp_path / "d*")], CorpusConfig(), "none")


def mine(config: CorpusConfig) -> Iterator[Any]:
    yield Document("a", "good", config.source, {"k": 1})
    yield BadRow("f", 3, "mine")
    yield Document("b", "lone \ud800")
    yield "no document"
    yield Document("c", "")
    yield Document("d", ",".join(config.paths))
    yield Document("e", "text", None)  # type: ignore[arg-type]
    yield Document("f", "\u00e9" * 51)


def test_a_reader_of_ones_own_is_one_block() -> None:
    corpus = CorpusConfig(reader=f"{__name__}:mine", source="s", paths=("p", "q"), max_row_bytes=101)
    plan = plan_blocks((), corpus, "none")
    assert plan == Plan((Block(0, "reader", (Span("p"), Span("q"))),), ())
    (batch,) = read(plan, corpus, metadata=True)
    assert (batch.ids, batch.texts, batch.metas) == (["a", "d"], ["good", "p,q"], [{"k": 1}, {}])
    assert [row.line for row in batch.bad] == [3, 3, 4, 5, 7, 8]
    assert ["source is None" in batch.bad[4].reason, "text of 102 bytes" in batch.bad[5].reason] == [
        True,
        True,
    ]
    (rest,) = read(plan, corpus, skip_rows=5)
    assert rest.ids == ["d"]
    with pytest.raises(ConfigError, match=r"corpus\.reader"):
        plan_blocks((), CorpusConfig(reader="none"), "none")


def test_urls_of_every_fsspec_backend() -> None:
    memory = fsspec.filesystem("memory")
    lines = [json.dumps(row) + "\n" for row in good_rows(100)]
    memory.pipe("/blocks/a.jsonl", "".join(lines).encode())
    memory.pipe("/blocks/b.jsonl.gz", gzip.compress("".join(lines).encode()))
    with memory.open("/blocks/c.parquet", "wb") as file:
        pq.write_table(pa.Table.from_pylist(good_rows(100)), file)
    for paths in (("memory://blocks",), ("memory://blocks/*",)):
        corpus = CorpusConfig(paths=paths)
        plan = plan_blocks((), corpus, "none", 4 * KIB)
        assert [file.url.rpartition("/")[2] for file in plan.files] == ["a.jsonl", "b.jsonl.gz", "c.parquet"]
        assert all(file.version and file.size_bytes for file in plan.files)
        assert ids(read(plan, corpus)) == [f"d{i}" for i in range(100)] * 3
    for url, message in {
        "memory://blocks/none.jsonl": "does not exist",
        "gs://bucket/x.jsonl": "pip install gcsfs",
        "nosuch://x.jsonl": "nosuch",
    }.items():
        with pytest.raises(InputError, match=message):
            plan_blocks((), CorpusConfig(paths=(url,)), "none")
