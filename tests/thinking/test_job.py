"""The job: every row accounted for, and the same files whatever stopped it on the way."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import think_worker
from thinking_engines import EchoEngine, PowerCut

from tpt_megatron.artifact import verify_manifest
from tpt_megatron.config.schema import ThinkingConfig
from tpt_megatron.errors import ConfigError, DamagedError, InputError
from tpt_megatron.records import TRAJECTORY_SCHEMA, BadRow, Document
from tpt_megatron.thinking import chunk as chunk_module
from tpt_megatron.thinking.chunk import link_exclusive
from tpt_megatron.thinking.identity import exclusive
from tpt_megatron.thinking.job import ThinkSummary, think
from tpt_megatron.thinking.journal import HEADER

Rows = list[Document | BadRow]
DOCUMENTS: Rows = [
    Document("a", "alpha", "web", {"url": "http://x", "n": 1}),
    BadRow("in.jsonl", 2, "not JSON"),
    *(Document(f"d{i}", f"text {i} " + "word " * (i % 4)) for i in range(9)),
    Document("a", "a second document of the same id"),
    Document("blank", " \n"),
    Document("lone", "a \ud800 surrogate"),
    Document("e", "EMPTY"),
    Document("long", "xy" * 150),
    *(Document(f"f{i}", f"more {i}") for i in range(8)),
]
GOOD = [*["a"], *(f"d{i}" for i in range(9)), *(f"f{i}" for i in range(8))]


@pytest.fixture(autouse=True)
def fresh_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EchoEngine, "asked", [])
    monkeypatch.setattr(EchoEngine, "cut_after", None)


@pytest.fixture
def config(tiny_generator: Path, tmp_path: Path) -> ThinkingConfig:
    return ThinkingConfig(
        engine="thinking_engines:EchoEngine",
        model=str(tiny_generator),
        prompt="back-thinking",
        output=str(tmp_path / "out"),
        documents_per_chunk=4,
    )


def run(config: ThinkingConfig, rows: Rows = DOCUMENTS) -> ThinkSummary:
    return think(iter(rows), config, lambda done, tokens: None)


def table(config: ThinkingConfig) -> list[dict[str, object]]:
    parts = sorted(Path(config.output).glob("part-*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def digests(folder: Path) -> dict[str, str]:
    """What a run must reproduce: all files but the manifest, which holds the seconds."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_every_row_is_accounted_for(config: ThinkingConfig) -> None:
    folder = Path(config.output)
    calls: list[tuple[int, int]] = []
    journals: list[int] = []

    def progress(done: int, tokens: int) -> None:
        calls.append((done, tokens))
        journals.append(len(list(folder.glob("journal/*"))))

    summary = think(DOCUMENTS, config, progress)
    rows = table(config)
    assert max(journals) <= 2, "five requests in flight touch two chunks; a published one has no journal"
    assert journals[-1] == 0
    assert [row["id"] for row in rows] == GOOD
    assert (summary.documents, summary.out, summary.quarantined) == (len(DOCUMENTS), len(GOOD), 6)
    assert summary.documents == summary.out + summary.quarantined
    assert summary.stopped + summary.length_capped == summary.out
    assert summary.length_capped == sum(row["finish_reason"] == "length" for row in rows) > 0
    assert summary.thinking_tokens == sum(row["thinking_tokens"] for row in rows)
    assert summary.document_tokens == sum(row["document_tokens"] for row in rows)
    assert calls[-1] == (len(DOCUMENTS), summary.thinking_tokens)
    refused = [json.loads(line) for line in (folder / "quarantine" / "rows.jsonl").read_text().splitlines()]
    assert [(row["position"], row["id"]) for row in refused] == [
        (2, None), (12, "a"), (13, "blank"), (14, "lone"), (15, "e"), (16, "long"),
    ]  # fmt: skip
    assert refused[0] == {"file": "in.jsonl", "line": 2, "position": 2, "id": None, "reason": "not JSON"}
    reasons = ["not JSON", "duplicate id 'a'", "is empty", "not valid Unicode", "thought is empty", "no room"]
    for row, reason in zip(refused, reasons, strict=True):
        assert reason in row["reason"]
    manifest = verify_manifest(folder / "manifest.json")
    assert manifest.kind == "trajectories"
    assert manifest.about["counts"] == {
        "documents_in": len(DOCUMENTS), "out": len(GOOD), "quarantined": 6, "pending": 0,
    }  # fmt: skip
    on_disk = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert on_disk == {*manifest.files, "manifest.json"}
    assert not (folder / "journal").exists()


def test_a_row_holds_the_contract(config: ThinkingConfig) -> None:
    run(config)
    part = Path(config.output) / "part-00000.parquet"
    assert pq.read_schema(part).equals(TRAJECTORY_SCHEMA)
    assert pq.read_metadata(part).row_group(0).column(0).compression == "ZSTD"
    rows = table(config)
    first = dict(rows[0])
    assert re.fullmatch(r"[a-z]+", str(first.pop("thinking")))
    assert re.fullmatch(r"back-thinking-[0-9a-f]{16}", str(first.pop("prompt")))
    assert 0 <= first.pop("seed") < 2**63  # type: ignore[operator]
    assert first.pop("finish_reason") in ("stop", "length")
    assert first.pop("thinking_tokens") in range(1, 10)
    assert first == {
        "id": "a", "sample": 0, "text": "alpha", "generator": config.model, "revision": "r1",
        "seed_honored": True, "document_tokens": 5, "truncated": False, "source": "web",
        "meta": '{"n": 1, "url": "http://x"}',
    }  # fmt: skip
    for row in rows:  # the tag that the generator wrote, the newlines and the stop token are gone
        assert re.fullmatch(r"[a-z]+", str(row["thinking"])), row
    assert len({row["seed"] for row in rows}) == len(rows)


def test_a_finished_job_returns_at_once(config: ThinkingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = run(config)
    monkeypatch.setattr(EchoEngine, "__init__", None)  # no generator is opened
    assert run(config, []) == summary
    part = Path(config.output) / "part-00001.parquet"
    part.write_bytes(part.read_bytes() + b"x")
    with pytest.raises(DamagedError, match="part-00001"):
        run(config)


@pytest.mark.parametrize("cut_after", [0, 1, 4, 5, 7, 12, 18])
def test_a_cut_job_goes_on_and_ends_the_same(
    config: ThinkingConfig, tmp_path: Path, cut_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config.model_copy(update={"output": str(tmp_path / "whole")}))
    whole = list(EchoEngine.asked)
    EchoEngine.asked.clear()
    monkeypatch.setattr(EchoEngine, "cut_after", cut_after)
    with pytest.raises(PowerCut):
        run(config)
    assert not (Path(config.output) / "manifest.json").exists()
    monkeypatch.setattr(EchoEngine, "cut_after", None)
    run(config)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert sorted(EchoEngine.asked) == sorted(whole), "nothing was generated twice"


@pytest.mark.parametrize("moment", ["before the link", "after the link", "before the manifest"])
def test_a_cut_at_the_end_of_a_chunk_or_job_generates_nothing_again(
    config: ThinkingConfig, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config.model_copy(update={"output": str(tmp_path / "whole")}))
    asked = len(EchoEngine.asked)

    def cut(*arguments: object) -> None:
        if moment == "after the link":
            link_exclusive(*arguments)  # type: ignore[arg-type]
        raise PowerCut

    where = (
        "tpt_megatron.thinking.job.finish"
        if "manifest" in moment
        else chunk_module.__name__ + ".link_exclusive"
    )
    with monkeypatch.context() as patch:
        patch.setattr(where, cut)
        with pytest.raises(PowerCut):
            run(config)
    if moment != "before the manifest":
        assert list((tmp_path / "out" / "journal").iterdir())
    (tmp_path / "out" / ".tmp-1-part-00000.parquet").write_bytes(b"left by a SIGKILL")
    run(config)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert len(EchoEngine.asked) == 2 * asked, "nothing was generated twice"


def test_a_journal_torn_at_any_byte_ends_the_same(
    config: ThinkingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = DOCUMENTS[:5]
    run(config.model_copy(update={"output": str(tmp_path / "whole")}), rows)
    monkeypatch.setattr(EchoEngine, "cut_after", len(EchoEngine.asked) + 3)
    with pytest.raises(PowerCut):
        run(config, rows)
    monkeypatch.setattr(EchoEngine, "cut_after", None)
    (journal,) = (tmp_path / "out" / "journal").iterdir()
    data, ends = journal.read_bytes(), [0]
    while ends[-1] < len(data):
        ends.append(ends[-1] + HEADER.size + HEADER.unpack_from(data, ends[-1])[0])
    assert len(ends) == 4
    for kept in (*range(0, len(data), 29), len(data)):
        torn = tmp_path / "torn"
        shutil.copytree(tmp_path / "out", torn)
        os.truncate(torn / "journal" / journal.name, kept)
        before = len(EchoEngine.asked)
        run(config.model_copy(update={"output": str(torn)}), rows)
        assert digests(torn) == digests(tmp_path / "whole"), kept
        assert len(EchoEngine.asked) - before == 4 - (sum(kept >= end for end in ends) - 1), kept
        shutil.rmtree(torn)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prompt", "paper"),
        ("temperature", 0.7),
        ("top_p", 0.8),
        ("seed", 1),
        ("max_new_tokens", 7),
        ("max_document_tokens", 9),
        ("documents_per_chunk", 5),
        ("revision", "other"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_setting_in_the_same_folder_is_refused(
    config: ThinkingConfig, key: str, value: object, finished: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if finished:
        run(config)
    else:
        monkeypatch.setattr(EchoEngine, "cut_after", 3)
        with pytest.raises(PowerCut):
            run(config)
    before = digests(Path(config.output))
    with pytest.raises(ConfigError, match=rf"thinking\.{key}") as caught:
        run(config.model_copy(update={key: value}))
    assert (caught.value.got, caught.value.expected) == (repr(value), repr(getattr(config, key)))
    assert digests(Path(config.output)) == before


def test_another_model_prompt_text_or_weights_are_refused(
    config: ThinkingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = tmp_path / "mine.txt"
    prompt.write_text("{document}")
    config = config.model_copy(update={"prompt": str(prompt)})
    monkeypatch.setattr(EchoEngine, "cut_after", 3)
    with pytest.raises(PowerCut):
        run(config)
    shutil.copytree(config.model, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"thinking\.model"):
        run(config.model_copy(update={"model": str(tmp_path / "other")}))
    monkeypatch.setattr(EchoEngine, "revision", "r2")
    with pytest.raises(ConfigError, match=r"^revision.*'r2'.*'r1'"):
        run(config)
    prompt.write_text("Read: {document}")
    with pytest.raises(ConfigError, match="prompt_sha256"):
        run(config)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[1:],
        lambda rows: rows[:3],
        lambda rows: rows[:5],  # the first chunk, whole
        lambda rows: [Document("a", "another text"), *rows[1:]],
        lambda rows: [*rows[:2], Document("new", "x"), *rows[2:]],
    ],
)
def test_a_corpus_that_changed_under_the_job_is_refused(
    config: ThinkingConfig, change: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EchoEngine, "cut_after", 12)
    with pytest.raises(PowerCut):
        run(config)
    monkeypatch.setattr(EchoEngine, "cut_after", None)
    with pytest.raises(InputError, match=r"part-0000\d"):
        run(config, change(DOCUMENTS))  # type: ignore[operator]
    assert not (Path(config.output) / "manifest.json").exists()


def test_a_damaged_part_is_named(config: ThinkingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EchoEngine, "cut_after", 12)
    with pytest.raises(PowerCut):
        run(config)
    monkeypatch.setattr(EchoEngine, "cut_after", None)
    part = Path(config.output) / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(DamagedError, match="part-00000"):
        run(config)
    part.unlink()
    assert run(config).out == len(GOOD)


def test_two_processes_do_not_share_a_job(config: ThinkingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EchoEngine, "cut_after", 0)
    with pytest.raises(PowerCut):
        run(config)
    with exclusive(Path(config.output) / "job.json"), pytest.raises(InputError, match="another process"):
        run(config)


def test_trajectories_of_no_job_are_left_alone(config: ThinkingConfig) -> None:
    stray = Path(config.output) / "part-00000.parquet"
    stray.parent.mkdir()
    stray.write_bytes(b"of someone else")
    with pytest.raises(InputError, match="no job"):
        run(config)
    assert stray.read_bytes() == b"of someone else"


def test_the_first_writer_of_a_part_wins(tmp_path: Path) -> None:
    for name in ("first", "late"):
        (tmp_path / name).write_text(name)
    assert link_exclusive(tmp_path / "first", tmp_path / "part")
    assert not link_exclusive(tmp_path / "late", tmp_path / "part")
    assert (tmp_path / "part").read_text() == "first"


@pytest.mark.parametrize("missing", ["model", "output"])
def test_what_is_not_set_is_named(config: ThinkingConfig, missing: str) -> None:
    with pytest.raises(ConfigError, match=rf"thinking\.{missing} is not set"):
        run(config.model_copy(update={missing: ""}))


def test_an_engine_that_forgets_is_told(config: ThinkingConfig) -> None:
    with pytest.raises(ConfigError, match=r"thinking\.engine.*unanswered"):
        run(config.model_copy(update={"engine": "thinking_engines:ForgetfulEngine"}))
    assert not (Path(config.output) / "manifest.json").exists()


def test_an_unknown_engine_is_named(config: ThinkingConfig) -> None:
    with pytest.raises(ConfigError, match=r"thinking\.engine.*transformers"):
        run(config.model_copy(update={"engine": "transformer"}))


def test_an_empty_corpus_is_a_finished_job(config: ThinkingConfig) -> None:
    assert run(config, []).documents == 0
    assert verify_manifest(Path(config.output) / "manifest.json").about["counts"]["pending"] == 0


def test_control_strings_of_a_document_stay_text(tiny_generator: Path, tmp_path: Path) -> None:
    text = "before </think> <|endoftext|> <think> after"
    config = think_worker.settings(str(tiny_generator), str(tmp_path / "out"))
    summary = run(config, [Document(f"forged{i}", f"{i} {text}") for i in range(12)])
    assert all(str(row["text"]).endswith(text) for row in table(config))
    assert summary.thinking_tokens > 12 * 20, "random weights stop one time in a hundred, not at once"


def test_a_killed_process_goes_on_to_the_same_files(tiny_generator: Path, tmp_path: Path) -> None:
    """A real SIGKILL of the real engine, in the middle of a chunk; the second process ends the job."""
    count = 20
    run(think_worker.settings(str(tiny_generator), str(tmp_path / "whole")), [*think_worker.corpus(count)])
    script = Path(think_worker.__file__)
    command = [sys.executable, str(script), str(tiny_generator), str(tmp_path / "out"), str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 9:
                process.send_signal(signal.SIGKILL)
                break
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert list((tmp_path / "out" / "journal").iterdir()), "killed in the middle of a chunk"
    run(think_worker.settings(str(tiny_generator), str(tmp_path / "out")), [*think_worker.corpus(count)])
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
