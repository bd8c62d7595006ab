"""Reading corpora and trajectories: good rows in order, bad rows by name, nothing lost in silence."""

import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tpt_megatron.config.load import load
from tpt_megatron.config.schema import CorpusConfig
from tpt_megatron.data.blocks import plan_blocks, read_block
from tpt_megatron.data.source import open_corpus
from tpt_megatron.errors import ConfigError, InputError
from tpt_megatron.records import BadRow, Document, text_id

ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": lambda raw: raw,
    ".json.gz": gzip.compress,
    ".jsonl.gz": lambda raw: gzip.compress(raw[:40]) + gzip.compress(raw[40:]),  # two members
    ".jsonl.zst": lambda raw: zstandard.compress(raw[:40]) + zstandard.compress(raw[40:]),
}


def documents(config: CorpusConfig) -> list[Document]:
    rows = list(open_corpus(config))
    assert all(isinstance(row, Document) for row in rows), rows
    return [row for row in rows if isinstance(row, Document)]


@pytest.mark.parametrize("suffix", ENCODERS)
def test_every_json_form_gives_the_same_documents(tmp_path: Path, suffix: str) -> None:
    rows = [{"id": "a", "text": "one\n日本 \u2028 x", "n": [1]}, {"text": "two"}, {"id": 7, "text": "3"}]
    raw = "".join(json.dumps(row) + "\n" for row in rows).encode() + b"\n  \n"
    (tmp_path / f"x{suffix}").write_bytes(ENCODERS[suffix](raw))
    config = CorpusConfig(paths=(str(tmp_path / f"x{suffix}"),), source="web")
    assert documents(config) == [
        Document("a", "one\n日本 \u2028 x", "web", {"n": [1]}),
        Document(text_id("two"), "two", "web"),
        Document("7", "3", "web"),
    ]


BAD_LINES = {
    b'{"text": "\xff"}': "UTF-8",
    b'{"text": "\\ud800"}': "surrogate",
    b'{"text": "cut': "JSON",
    b"[1]": "not an object",
    b'{"text": 5}': "holds no text but int",
    b'{"body": "x"}': "holds no text but NoneType",
    b'{"text": ""}': "is empty",
    b'{"text": "x", "id": 1.5}': "is no id",
    b'{"text": "x", "id": ""}': "is no id",
    b'{"text": "x", "id": true}': "is no id",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_is_named_and_its_neighbours_live(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "before"}\n\n' + line + b'\n{"text": "after"}')
    before, bad, after = open_corpus(CorpusConfig(paths=(str(path),)))
    assert isinstance(bad, BadRow)
    assert (bad.file, bad.line) == (str(path), 3)
    assert BAD_LINES[line] in bad.reason
    assert isinstance(before, Document)
    assert isinstance(after, Document)
    assert (before.text, after.text) == ("before", "after")


def test_parquet_rows_bad_bytes_and_types_that_json_lacks(tmp_path: Path) -> None:
    raw = pa.array([b"ok", b"\xff\xfe", None, b"", b"fine"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 5, raw.buffers(), null_count=1)
    blob = pa.array([b"\x00"] * 5, pa.binary())
    pq.write_table(pa.table({"text": text, "id": [1, 2, 3, 4, 5], "blob": blob}), tmp_path / "x.parquet")
    rows = list(open_corpus(CorpusConfig(paths=(str(tmp_path),))))
    good = [row for row in rows if isinstance(row, Document)]
    assert [(row.id, row.text) for row in good] == [("1", "ok"), ("5", "fine")]
    assert json.loads(json.dumps(good[0].meta)) == good[0].meta
    assert [row.line for row in rows if isinstance(row, BadRow)] == [2, 3, 4]


def test_parquet_without_the_text_column_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"corpus\.text_key.*got text, expected one of body"):
        list(open_corpus(CorpusConfig(paths=(str(tmp_path / "x.parquet"),))))


def test_folders_and_globs_in_the_order_of_names_and_the_limit(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "b/10.jsonl", "a.jsonl", "README.md", "b/.hidden.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"text": name}) + "\nbroken\n")
    paths = (str(tmp_path / "*.jsonl"), str(tmp_path / "b"))
    rows = list(open_corpus(CorpusConfig(paths=paths, max_documents=2)))
    assert [row.text for row in rows if isinstance(row, Document)] == ["a.jsonl", "b/10.jsonl"]
    rows = list(open_corpus(CorpusConfig(paths=paths)))
    assert [row.text for row in rows if isinstance(row, Document)] == ["a.jsonl", "b/10.jsonl", "b/2.jsonl"]
    with pytest.raises(InputError, match="twice"):
        open_corpus(CorpusConfig(paths=(*paths, str(tmp_path / "a.jsonl"))))


@pytest.mark.parametrize("name", ["none.jsonl", "*.none", "empty", "notes.txt"])
def test_a_path_that_names_nothing_is_refused_before_the_first_row(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"corpus\.paths"):
        open_corpus(CorpusConfig(paths=(str(tmp_path / name),)))
    with pytest.raises(InputError, match=r"corpus\.paths"):
        open_corpus(CorpusConfig())


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("keep", [0, 0.5, 0.98])
def test_a_truncated_stream_is_not_taken_for_a_short_one(tmp_path: Path, suffix: str, keep: float) -> None:
    raw = b"".join(b'{"text": "row %d"}\n' % number for number in range(5000))
    whole = gzip.compress(raw) if suffix.endswith("gz") else zstandard.compress(raw)
    path = tmp_path / f"x{suffix}"
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(InputError, match=path.name):
        list(open_corpus(CorpusConfig(paths=(str(path),))))


def mine(config: CorpusConfig) -> Iterator[Document]:
    yield Document("x", config.source)


def test_the_reader_is_a_slot() -> None:
    reader = f"{__name__}:mine"
    assert list(open_corpus(CorpusConfig(reader=reader, source="s"))) == [Document("x", "s")]
    with pytest.raises(ConfigError, match=r"corpus\.reader"):
        open_corpus(CorpusConfig(reader="autp"))


RECIPES = {
    "fineweb-edu": {
        "text": "t",
        "id": "<urn:uuid:1>",
        "dump": "CC-MAIN-2024-10",
        "score": 3.4,
        "int_score": 3,
    },
    "megamath-web-pro-max": {"text": "t", "url": "u"},
    "essential-web": {
        "id": 7,
        "text": "t",
        "eai_taxonomy": {"education_level": {"primary": {"code": "3", "label": "Undergraduate"}}},
        "quality_signals": {"fasttext": {"dclm": 0.5}},
    },
    "mixture-of-thoughts": {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>a</think>b"}],
        "num_tokens": 9,
        "source": "math",
    },
}

KEPT = {
    "fineweb-edu": {"dump": RECIPES["fineweb-edu"]["dump"], "int_score": 3},
    "megamath-web-pro-max": {},
    "essential-web": {"eai_taxonomy.education_level.primary.label": "Undergraduate"},
    "mixture-of-thoughts": {"num_tokens": 9},
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_reads_the_columns_of_its_corpus(tmp_path: Path, name: str) -> None:
    pq.write_table(pa.Table.from_pylist([RECIPES[name]] * 2), tmp_path / "x.parquet")
    tree = load([name, f'corpus.paths=["{tmp_path}"]'])
    plan = plan_blocks(tree.data.inputs, tree.corpus, tree.data.style)
    keys = tree.data.lineage_keys
    (batch,) = read_block(plan.blocks[0], tree.corpus, tree.data.style, metadata=keys)
    assert (len(batch), batch.bad) == (2, [])
    assert batch.sources[0] == ("math" if name == "mixture-of-thoughts" else name)
    assert batch.metas[0] == KEPT[name]
    whole = [{**RECIPES[name], "extra": 1}]
    (tmp_path / "y.jsonl").write_text(json.dumps(whole[0]))
    tree = load([name, f'corpus.paths=["{tmp_path}/y.jsonl"]'])
    plan = plan_blocks((), tree.corpus, tree.data.style)
    (again,) = read_block(plan.blocks[0], tree.corpus, tree.data.style, metadata=keys)
    assert (again.ids, again.metas) == (batch.ids[:1], batch.metas[:1])


def test_a_link_to_a_folder_is_followed_and_one_back_is_not(tmp_path: Path) -> None:
    for name in ("far/deep/2.jsonl", "c/1.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(json.dumps({"text": name}))
    (tmp_path / "c" / "link").symlink_to(tmp_path / "far")
    for loop in ("c/loop", "far/deep/up"):
        (tmp_path / loop).symlink_to((tmp_path / loop).parent)
    (tmp_path / "far" / "back").symlink_to(tmp_path / "c")
    config = CorpusConfig(paths=(str(tmp_path / "c"),))
    assert [row.text for row in documents(config)] == ["c/1.jsonl", "far/deep/2.jsonl"]


@pytest.mark.parametrize(
    "name", ["x.jsonl.bz2", "x.json.xz", "x.parquet.gz", "x.ndjson.7z", "x.jsonl.lz4", "x.json.br", "X.JSONL"]
)
def test_rows_that_no_reader_takes_stop_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    for other in ("README.md", "manifest.json", "SHA256SUMS", "code.tar.gz", f".{name}"):
        (tmp_path / other).write_bytes(b"x")
    config = CorpusConfig(paths=(str(tmp_path),))
    assert [row.text for row in documents(config)] == ["a"]
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=rf"{name} has a suffix that no reader takes.*\.jsonl.*; unpack"):
        open_corpus(config)


def test_what_a_folder_cannot_give_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "part1.jsonl").write_text('{"text": "a"}')
    (tmp_path / "README.md").symlink_to(tmp_path / "gone.md")  # no rows, no matter
    config = CorpusConfig(paths=(str(tmp_path),))
    assert [row.text for row in documents(config)] == ["a"]
    (tmp_path / "part2.jsonl").symlink_to(tmp_path / "gone.jsonl")
    for path in (tmp_path, tmp_path / "*.jsonl", tmp_path / "part2.jsonl"):
        with pytest.raises(InputError, match=r"part2\.jsonl is a link to nothing; mend"):
            open_corpus(CorpusConfig(paths=(str(path),)))
    (tmp_path / "part2.jsonl").unlink()
    (tmp_path / "closed").mkdir()
    listed = os.listdir

    def refuse(path: str) -> list[str]:  # root reads any folder
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr("tpt_megatron.data.files.os.listdir", refuse)
    with pytest.raises(InputError, match=r"closed cannot be listed: Permission denied; make it readable"):
        open_corpus(config)


def nested_table(case: str) -> pa.Table:
    if case == "twice":
        return pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"])
    return pa.table({"text": ["a"], "doc": [{"text": "a", "id": "i"}]})


@pytest.mark.parametrize(
    ("case", "keys", "message"),
    [
        ("nested", {"text_key": "doc.text"}, r"corpus\.text_key: .*x\.parquet: column 'doc\.text' is nested"),
        ("nested", {"id_key": "doc.id"}, r"corpus\.id_key: .*x\.parquet: column 'doc\.id' is nested"),
        ("nested", {"source_key": "doc.no"}, r"corpus\.source_key: .*x\.parquet: column 'doc\.no' is nested"),
        ("twice", {}, r"x\.parquet has two columns of one name, got text"),
    ],
)
def test_columns_that_cannot_be_read_by_name_are_refused(
    tmp_path: Path, case: str, keys: dict[str, str], message: str
) -> None:
    pq.write_table(nested_table(case), tmp_path / "x.parquet")
    config = CorpusConfig(paths=(str(tmp_path),), **keys)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        list(open_corpus(config))
    with pytest.raises(InputError, match=message):
        list(read_block(plan_blocks((), config, "none").blocks[0], config, "none", metadata=False))


def test_two_columns_of_one_name_that_nobody_reads_are_no_matter(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([c]) for c in "abc"], ["text", "n", "n"])
    pq.write_table(table, tmp_path / "x.parquet")
    config = CorpusConfig(paths=(str(tmp_path),))
    (batch,) = read_block(plan_blocks((), config, "none").blocks[0], config, "none", metadata=False)
    assert batch.texts == ["a"]
    with pytest.raises(InputError, match="got n"):
        list(open_corpus(config))  # whose metadata they are


def test_a_reader_of_ones_own_chooses_its_rows_itself() -> None:
    config = CorpusConfig(reader=f"{__name__}:mine", where=(("n", ">", 1.0),))
    with pytest.raises(ConfigError, match=r"corpus\.where has no effect"):
        open_corpus(config)
    with pytest.raises(ConfigError, match=r"corpus\.where has no effect"):
        plan_blocks((), config, "none")


@pytest.mark.parametrize("relative", [False, True])
def test_the_output_among_the_inputs_is_no_input(
    tmp_path: Path, relative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prefix = Path("in/web") if relative else tmp_path / "in" / "web"
    kept = ["a", "web", "web.v2", "website.lineage"]  # of other names, however near
    written = ["web.lineage.parquet", "web.quarantine.jsonl", "web.work/out.lineage.parquet"]
    for name in (*written, *(f"{name}.jsonl" for name in (*kept, "web.works/z"))):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("{}")
    expected = sorted(f"in/{name}.jsonl" for name in [*kept, "web.works/z"])
    for name in ("in", str(tmp_path / "in"), "i*", "file://" + str(tmp_path / "in")):
        for inputs, corpus in (((), CorpusConfig(paths=(name,))), ((name,), CorpusConfig())):
            files = plan_blocks(inputs, corpus, "none", exclude=prefix).files
            assert sorted(str(Path(file.url).relative_to(tmp_path)) for file in files) == expected
    globbed = plan_blocks((), CorpusConfig(paths=("in/*.*",)), "none", exclude=prefix).files
    assert sorted(str(Path(file.url).relative_to(tmp_path)) for file in globbed) == expected
    itself = ("in/web.quarantine.jsonl", "in/web.work/out.lineage.parquet")
    assert len(plan_blocks((), CorpusConfig(paths=itself), "none", exclude=prefix).files) == 2
    assert len(plan_blocks((), CorpusConfig(paths=("in",)), "none").files) == 8
