"""The page says what the artifacts hold, to the digit, and nothing in them can change the page."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from report_folder import (
    HOSTILE,
    TOKENS_PER_STEP,
    lineage_lengths,
    metrics_lines,
    trajectory,
    write_dataset,
    write_evaluation,
    write_everything,
    write_run,
    write_trajectories,
)
from report_reader import Element, parse

from tpt_megatron.report.page import MISSING
from tpt_megatron.report.plots import VARIABLES
from tpt_megatron.report.run import report


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reported")
    write_everything(folder)
    report(folder)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Element:
    return parse((folder / "report.html").read_text())


def rendered(folder: Path) -> Element:
    return parse(report(folder).output.read_text())


def test_summary_counts(folder: Path) -> None:
    summary = report(folder)
    counts = (summary.runs, summary.datasets, summary.trajectories, summary.evaluations, summary.left_out)
    assert counts == (2, 1, 1, 2, 0)
    assert summary.output == folder / "report.html"
    assert summary.megabytes == summary.output.stat().st_size / 1e6


def test_same_bytes_twice_and_elsewhere(folder: Path, tmp_path: Path) -> None:
    first = (folder / "report.html").read_bytes()
    report(folder)
    assert (folder / "report.html").read_bytes() == first
    report(folder, tmp_path / "deep" / "other.html")
    assert (tmp_path / "deep" / "other.html").read_bytes() == first


def test_runs_table(page: Element) -> None:
    rows = page.one("table", id="runs-table").rows
    assert [row[0] for row in rows] == ["runs/tpt", "runs/vanilla"]
    for row, lines in zip(rows, (metrics_lines(40), metrics_lines(20, thinking=False)), strict=True):
        steps = len(lines)
        speed = TOKENS_PER_STEP * (steps - 1) / (0.5 * (steps - 1))  # the slow first step left out
        assert row[1:] == [
            str(steps), "100", f"{TOKENS_PER_STEP * steps:,}", f"{speed:,.0f}",
            f"{lines[0]['loss']:.4f}", f"{lines[-1]['loss']:.4f}",
        ]  # fmt: skip


def test_datasets_table(page: Element) -> None:
    document, thinking = (int(lengths.sum()) for lengths in lineage_lengths(200))
    (row,) = page.one("table", id="datasets-table").rows
    assert row == [
        "data/train", "200", f"{document + thinking:,}", f"{document:,}", f"{thinking:,}",
        f"{(document + thinking) / document:.3f}", "think_tags", "Qwen/x", "wiki",
    ]  # fmt: skip


def test_dataset_lengths(page: Element) -> None:
    rows = page.one("table", id="dataset-0-lengths").rows
    for row, lengths in zip(rows, lineage_lengths(200), strict=False):
        order = np.sort(lengths)
        assert row[1:] == [
            f"{lengths.mean():,.1f}", *[f"{order[place]:,}" for place in (9, 49, 99, 149, 189, 199)],
            str(int((lengths == 0).sum())),
        ]  # fmt: skip


def test_trajectories_table(page: Element) -> None:
    (row,) = page.one("table", id="trajectories-table").rows
    assert row == [
        "trajectories", "10", "7", "2", "1", "6", "1", "14.3 %", "Qwen/Qwen3-8B abc123", "paper@77aa",
    ]  # fmt: skip


def test_trajectory_lengths(page: Element) -> None:
    tables = page.one("section", id="trajectories").all("table")
    assert tables[1].rows == [
        ["document", "14.0", "14", "17", "17", "0"],
        ["thought", "400.0", "400", "700", "700", "0"],
    ]


def test_samples_are_the_first_five_escaped_and_cut(page: Element) -> None:
    samples = page.all("article", class_="sample")
    assert [sample.one("h4").text for sample in samples] == [f"doc-{n}" for n in range(1, 6)]
    document, thought = samples[0].all("div", class_="text")
    assert document.text == HOSTILE
    assert thought.text == ("long " * 900)[:2000]
    assert "2,000 of 4,500 characters" in samples[0].text
    assert "cut at the cap" in samples[0].text
    assert "Cut:" not in samples[1].text
    assert "stopped by itself" in samples[1].text


def test_evaluations_table(page: Element, folder: Path) -> None:
    table = page.one("table", id="evaluations-table")
    heads = [head.text for head in table.one("thead").all("th")]
    assert heads == ["model", "held", "raw", *["document", "thought", "all"] * 2]
    tpt, vanilla = table.rows
    assert tpt[0] == "hf/tptscores/tpt"
    assert tpt[1:4] == [
        f"{loss:.4f}ppl {math.exp(loss):,.2f}{tokens} tokens"
        for loss, tokens in ((2.5, 10), (1.25, 20), (1.875, 30))
    ]
    assert tpt[5] == MISSING, "no thought token, so no loss"
    assert vanilla[:5] == [
        "vanilla-modelscores/vanilla",
        MISSING,
        MISSING,
        MISSING,
        f"3.5000ppl {math.exp(3.5):,.2f}10 tokens",
    ]


def test_page_needs_no_network_and_no_script(page: Element, folder: Path) -> None:
    text = (folder / "report.html").read_text()
    assert str(folder) not in text
    assert "@import" not in text
    assert "url(" not in re.sub(r"url\(#\w+\)", "", text)
    ids = [element.attributes["id"] for element in page.all() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    for element in page.all():
        assert element.tag not in ("script", "link", "iframe", "img", "object", "use")
        for name, value in element.attributes.items():
            assert not name.startswith("on")
            assert "src" not in name
            if name == "href":
                assert value.removeprefix("#") in ids


def test_every_colour_follows_dark_mode(page: Element, folder: Path) -> None:
    svgs = page.all("svg")
    assert len(svgs) == 1 + 2 * 3 + 1 + 1
    style = page.one("style").text
    light, dark = style.split("prefers-color-scheme: dark")
    for name in VARIABLES.values():
        assert f"--{name}:" in light
        assert f"--{name}:" in dark
    for svg in svgs:
        for element in svg.all():
            assert "#0" not in element.attributes.get("style", "").replace("url(#", "")
            assert element.tag != "text" or "fill: var(--ink)" in element.attributes["style"]


@pytest.mark.parametrize("where", ["run", "prefix", "source", "tokenizer", "model", "dataset", "id", "bad"])
def test_hostile_names_are_text(tmp_path: Path, where: str) -> None:
    evil = "<script>x"
    write_run(tmp_path / (evil if where == "run" else "run"), metrics_lines(2))
    names = {name: evil if where == name else name for name in ("prefix", "source", "tokenizer", "model")}
    write_dataset(tmp_path / names["prefix"], 3, [names["source"]], names["tokenizer"])
    scores = {evil if where == "dataset" else "d": {"loss": 1, "tokens": 1, "document_loss": 1,
              "document_tokens": 1, "thinking_loss": None, "thinking_tokens": 0}}  # fmt: skip
    write_evaluation(tmp_path / "scores", names["model"], scores)
    write_trajectories(tmp_path / "t", [trajectory(1, id=evil if where == "id" else "1")])
    if where == "bad":
        write_run(tmp_path / evil, [])
    page = rendered(tmp_path)
    assert not page.all("script")
    assert evil in page.text


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    write_run(tmp_path / "caf\udce9", metrics_lines(2))
    assert rendered(tmp_path).one("table", id="runs-table").rows[0][0] == "caf?"


def test_model_path_is_relative_to_the_folder(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "work" / "scores", str(tmp_path / "models" / "m"), {})
    page = rendered(tmp_path / "work")
    assert page.one("table", id="evaluations-table").rows[0][0].startswith("../models/m")
    assert str(tmp_path) not in page.text


def test_many_long_runs_stay_under_two_megabytes(tmp_path: Path) -> None:
    lines = metrics_lines(3000)
    noise = np.random.default_rng(0).normal(size=3000)  # a smooth curve would be drawn with fewer points
    for line, more in zip(lines, noise, strict=True):
        line |= {
            name: line[name] * (3 + more) for name in ("document_loss", "thinking_loss", "gradient_norm")
        }
    for number in range(12):
        write_run(tmp_path / f"run-{number:02d}", lines)
    summary = report(tmp_path)
    assert summary.runs == 12
    assert summary.megabytes < 2 * 12 / 50 + 0.02  # so fifty of them stay under 2
    assert "averaged over groups of steps" in summary.output.read_text()
