"""What is under a folder is found; what cannot be read is named, never dropped in silence."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_folder import (
    metrics_lines,
    score,
    trajectory,
    write_dataset,
    write_evaluation,
    write_run,
    write_trajectories,
)
from report_reader import parse

from tpt_megatron.artifact import Manifest, write_manifest
from tpt_megatron.config.schema import CorpusConfig, DataConfig
from tpt_megatron.data.pack import pack
from tpt_megatron.errors import InputError
from tpt_megatron.report.find import find
from tpt_megatron.report.lengths import Lengths
from tpt_megatron.report.page import MISSING
from tpt_megatron.report.plots import Curve, binary, compact, curves, run_style
from tpt_megatron.report.run import report
from tpt_megatron.report.training import read_run
from tpt_megatron.train.log import MetricsLog


@pytest.mark.parametrize("kind", ["missing", "a file", "empty", "another artifact", "only temporary"])
def test_nothing_to_report(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "folder"
    if kind == "a file":
        folder.write_text("")
    elif kind != "missing":
        folder.mkdir()
    if kind == "another artifact":
        write_manifest(folder / "manifest.json", Manifest("checkpoint", {}, {}))
    if kind == "only temporary":
        write_trajectories(folder / ".tmp-1-t", [trajectory(1)])
        write_run(folder / ".tmp-1-run", metrics_lines(2))
    with pytest.raises(InputError, match=r"no such folder|nothing to report"):
        report(folder)
    assert not (folder / "report.html").exists()


def test_an_unreadable_folder_says_why(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [])
    with pytest.raises(InputError, match="no finished step yet"):
        report(tmp_path)


@pytest.mark.parametrize("end", ["", '{"step": 4, "lo', "{}", '{"step": "\udce9'])
def test_torn_last_line_is_skipped(tmp_path: Path, end: str) -> None:
    write_run(tmp_path, metrics_lines(3))
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(end.encode(errors="surrogateescape"))
    run = read_run(tmp_path / "metrics.jsonl", "run")
    assert run.metrics["step"].tolist() == [1, 2, 3]


def test_last_line_without_its_newline_counts(tmp_path: Path) -> None:
    write_run(tmp_path, metrics_lines(2), json.dumps(metrics_lines(3)[-1]))
    assert read_run(tmp_path / "metrics.jsonl", "run").steps == 3


def _broken_metrics(folder: Path) -> None:
    log = folder / "run" / "metrics.jsonl"
    write_run(log.parent, metrics_lines(3))
    log.write_text(log.read_text().replace('"step": 2', '"stop": 2'))


def _no_config(folder: Path) -> None:
    write_run(folder / "run", metrics_lines(3))
    (folder / "run" / "config.json").unlink()


def _cut_lineage(folder: Path) -> None:
    write_dataset(folder / "bad")
    lineage = folder / "bad.lineage.parquet"
    lineage.write_bytes(lineage.read_bytes()[:-10])


def _garbled_parquet(folder: Path) -> None:
    write_trajectories(folder / "t", [trajectory(1)])
    part = folder / "t" / "part-00000.parquet"
    part.write_bytes(bytes(part.stat().st_size))


def _changed_manifest(folder: Path) -> None:
    write_dataset(folder / "bad")
    path = folder / "bad.manifest.json"
    path.write_text(path.read_text().replace("think_tags", "plain"))


def _fact_missing(folder: Path) -> None:
    write_manifest(folder / "bad.manifest.json", Manifest("dataset", {}, {"style": "plain"}))


def _changed_scores(folder: Path) -> None:
    write_evaluation(folder / "scores", "m", {"d": score(2.5, None)})
    path = folder / "scores" / "evaluation.json"
    path.write_text(path.read_text().replace("2.5", "1.5"))


@pytest.mark.parametrize(
    ("damage", "name", "problem"),
    [
        (_broken_metrics, "run", "run/metrics.jsonl: line 2 is not a step (KeyError: 'step')"),
        (_no_config, "run", "run/config.json: no resolved config here"),
        (_cut_lineage, "bad", "bad.lineage.parquet: wrong size"),
        (_garbled_parquet, "t", "t/part-00000.parquet: not the Parquet file that was written"),
        (_changed_manifest, "bad", "bad.manifest.json: the manifest does not match its own checksum"),
        (_fact_missing, "bad", "bad.manifest.json: about.tokenizer.name, got None, expected str"),
        (_changed_scores, "scores", "scores/evaluation.json: block 0 of 1 does not match its checksum"),
    ],
)
def test_what_cannot_be_read_is_left_out_by_name(
    tmp_path: Path, damage: Any, name: str, problem: str
) -> None:
    write_run(tmp_path / "sound", metrics_lines(2))
    damage(tmp_path)
    (item,) = find(tmp_path).left_out
    assert item.name == name
    assert item.problem.startswith(problem)
    summary = report(tmp_path)
    assert (summary.runs, summary.left_out) == (1, 1)
    assert problem in parse(summary.output.read_text()).one("section", id="left-out").text


@pytest.mark.parametrize("points", [1, 3, 10, 500])
def test_curves_weigh_every_token_alike(tmp_path: Path, points: int) -> None:
    lines = metrics_lines(23)
    write_run(tmp_path, lines)
    run = read_run(tmp_path / "metrics.jsonl", "run")
    groups = np.array_split(np.arange(23), 23) if points >= 23 else None
    starts = [group * 23 // points for group in range(points)] if groups is None else list(range(23))
    bounds = list(zip(starts, [*starts[1:], 23], strict=True))
    for part, names in (
        ("document", ["document"]),
        ("thinking", ["thinking"]),
        ("all", ["document", "thinking"]),
    ):
        expected = [
            sum(line[f"{n}_loss"] for n in names for line in lines[a:b])
            / sum(line[f"{n}_tokens"] for n in names for line in lines[a:b])
            for a, b in bounds
        ]
        np.testing.assert_allclose(run.mean_loss(part, points), expected, rtol=1e-12)
    assert run.consumed(points).tolist() == [lines[b - 1]["consumed_tokens"] for _, b in bounds]
    assert run.largest("gradient_norm", points).max() == 51, "a spike survives the grouping"


def test_no_thought_token_is_a_gap_not_a_zero(tmp_path: Path) -> None:
    write_run(tmp_path, metrics_lines(5, thinking=False))
    run = read_run(tmp_path / "metrics.jsonl", "run")
    assert np.isnan(run.mean_loss("thinking", 500)).all()
    assert np.isfinite(run.mean_loss("document", 500)).all()


def test_a_run_of_one_step_is_a_dot(tmp_path: Path) -> None:
    write_run(tmp_path, metrics_lines(1))
    page = parse(report(tmp_path).output.read_text())
    assert page.one("table", id="runs-table").rows[0][4] == MISSING
    assert all(svg.all("use") for svg in page.all("svg"))


def test_plotted_points_are_the_numbers() -> None:
    x, y = np.array([0.0, 1.0, 2.0, 3.0]), np.array([4.0, np.inf, 2.0, 1.0])
    svg = parse(curves("plot", [Curve(x, y, run_style(0)[0])], "x", "y")).one("svg")
    (path,) = [p for p in svg.all("path") if "--run-0" in p.attributes.get("style", "")]
    pieces = path.attributes["d"].split("M")[1:]
    points = [[float(v) for v in piece.replace("L", " ").split()] for piece in pieces]
    (x2, y2, x3, y3) = points[-1]
    assert len(points[-1]) == 4, "infinity breaks the line"
    assert x3 > x2
    assert y3 > y2, "the last loss is lower, which is further down in SVG"


@pytest.mark.parametrize(
    "values", [[1], [2, 2, 2], [0, 0], [0, 1, 5, 5, 8, 1000], list(range(5000)), [2**20, 1]]
)
def test_lengths_are_exact(values: list[int]) -> None:
    lengths = Lengths.empty()
    for piece in np.array_split(np.array(values, np.int32), min(3, len(values))):
        lengths = lengths.add(piece)
    order = sorted(values)
    assert (lengths.rows, lengths.zeros, lengths.longest) == (len(values), values.count(0), order[-1])
    assert lengths.mean == pytest.approx(np.mean(values))
    for share in (0.5, 0.9, 1.0):
        assert lengths.quantile(share) == order[int(np.ceil(share * len(values))) - 1]
    edges, rows = lengths.histogram()
    assert rows.sum() == len(values) - values.count(0)
    assert rows.tolist() == [sum(low <= v < high for v in values) for low, high in pairwise(edges)]
    if len(rows):
        assert rows[0]
        assert rows[-1]


def test_no_row_at_all() -> None:
    lengths = Lengths.empty()
    assert (lengths.rows, lengths.mean, lengths.quantile(0.5), lengths.longest) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (950, "950"), (1500, "1.5k"), (2e7, "20M"), (3e9, "3B"), (1e12, "1T")]
)
def test_compact(value: float, text: str) -> None:
    assert compact(value) == text


@pytest.mark.parametrize(("value", "text"), [(1, "1"), (512, "512"), (8192, "8k"), (2**20, "1M")])
def test_binary(value: float, text: str) -> None:
    assert binary(value) == text


def test_reads_what_pack_and_the_run_write(tmp_path: Path, tiny_tokenizer: Path) -> None:
    """The other rooms' own writers, so that a change of theirs is seen here."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": "word " * n}) + "\n" for n in range(1, 6)))
    data = DataConfig(tokenizer=str(tiny_tokenizer), style="none", output=str(tmp_path / "packed" / "raw"))
    packed = pack(data, CorpusConfig(paths=(str(corpus),), source="words"), lambda rows: None)
    write_run(tmp_path / "run", [])
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl", 0)
    for line in metrics_lines(4):
        log.write(line)
    log.close()
    found = find(tmp_path)
    (dataset,) = found.datasets
    assert (dataset.name, dataset.sources, dataset.expansion) == ("packed/raw", ("words",), 1.0)
    assert (dataset.counts.tokens, dataset.counts.sequences) == (packed.tokens, packed.sequences)
    assert dataset.lineage is not None
    assert dataset.lineage.whole.document.rows == 5
    assert dataset.lineage.whole.document.total == packed.tokens
    assert not dataset.disagreements
    assert not isinstance(dataset.texts, str), dataset.texts
    assert len(dataset.texts.sequences) == 5
    assert found.runs[0].steps == 4
    assert not found.left_out
