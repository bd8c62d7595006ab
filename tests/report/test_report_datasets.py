"""What a page says of a dataset is what a second count of its rows says; nothing in its text is markup."""

import itertools
import json
import math
import re
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_folder import Packed, write_packed
from report_reader import Element, parse

from tpt_megatron.artifact import Manifest, read_manifest, write_manifest
from tpt_megatron.data.layout import dataset_file
from tpt_megatron.errors import DamagedError, InputError
from tpt_megatron.report import metadata
from tpt_megatron.report.lengths import GroupedLengths
from tpt_megatron.report.page import MISSING
from tpt_megatron.report.run import report

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)


def page_of(path: Path) -> Element:
    return parse(report(path).output.read_text())


def random_rows(count: int, seed: int = 0) -> list[Packed]:
    """Sequences of any ids; three sources, two fields, some without a thought or a field."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        length = int(random.integers(1, 400)) if number % 11 else int(random.integers(3000, 40000))
        start, end = sorted(random.integers(0, length + 1, size=2).tolist())
        end = start if number % 9 == 0 else end
        meta = {"domain": f"domain {number % 7}", "level": number % 3, "nothing": None}
        if number % 4 == 0:
            del meta["level"]
        ids = random.integers(0, 700, size=length).tolist()
        source = ("wiki", "math", "web")[number % 3]
        rows.append(Packed(ids, start, end, source, "length" if number % 5 == 0 else "stop", meta))
    return rows


def quantiles(values: list[int]) -> list[str]:
    order = sorted(values)
    cells = [f"{order[math.ceil(share * len(order)) - 1]:,}" for share in SHARES]
    return [f"{statistics.fmean(order):,.1f}", *cells, f"{order[-1]:,}"]


def summary(rows: list[Packed]) -> list[str]:
    """The cells behind a value's name in a field's first table."""
    thoughts = [row for row in rows if row.thinking]
    capped = sum(row.finish_reason == "length" for row in thoughts)
    document, thinking = sum(row.document for row in rows), [row.thinking for row in rows]
    return [
        f"{len(rows):,}", f"{statistics.fmean(thinking):,.1f}", quantiles(thinking)[3],
        f"{100 * capped / len(thoughts):.1f} %" if thoughts else MISSING,
        f"{(document + sum(thinking)) / document:,.3f}" if document else MISSING,
    ]  # fmt: skip


ROWS = random_rows(150)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Element:
    return page_of(write_packed(tmp_path_factory.mktemp("packed") / "train", ROWS))


def test_lengths_of_all_sequences(page: Element) -> None:
    parts = {
        "document": [row.document for row in ROWS], "thought": [row.thinking for row in ROWS],
        "both": [len(row.ids) for row in ROWS],
    }  # fmt: skip
    expected = [[name, *quantiles(values), str(values.count(0))] for name, values in parts.items()]
    assert page.one("table", id="dataset-0-lengths").rows == expected


def test_pairs_longer_than_windows(page: Element) -> None:
    expected = []
    for window in (2048, 4096, 8192, 16384, 32768):
        longer = sum(len(row.ids) > window for row in ROWS)
        expected.append([f"{window:,} tokens", str(longer), f"{100 * longer / len(ROWS):.1f} %"])
    assert page.one("table", id="dataset-0-windows").rows == expected
    assert 0 < int(expected[-1][1]) < int(expected[0][1])


def test_a_pair_as_long_as_the_window_fits(tmp_path: Path) -> None:
    rows = [Packed([1] * length, 5, 50) for length in (2047, 2048, 2049)]
    page = page_of(write_packed(tmp_path / "train", rows))
    assert page.one("table", id="dataset-0-windows").rows[0][1] == "1"


@pytest.mark.parametrize("number", [0, 1, 2])
def test_groups_of_a_field(page: Element, number: int) -> None:
    name = ("source", "domain", "level")[number]
    groups: dict[str, list[Packed]] = {}
    for row in ROWS:
        value = row.source if name == "source" else (row.meta or {}).get(name, "without this field")
        groups.setdefault(str(value), []).append(row)
    # The longest thoughts first, rows without the field last.
    order = sorted(
        groups,
        key=lambda v: (v == "without this field", -statistics.fmean(row.thinking for row in groups[v])),
    )
    table = page.one("table", id=f"dataset-0-field-{number}")
    assert table.one("thead").all("th")[0].text == name
    assert table.rows == [[value, *summary(groups[value])] for value in order]
    lengths = page.one("table", id=f"dataset-0-field-{number}-lengths")
    expected = []
    for value in order:
        expected.append([value, "document", "", *quantiles([row.document for row in groups[value]])])
        expected.append([value, "thought", "", *quantiles([row.thinking for row in groups[value]])])
    assert lengths.rows == expected
    assert len(lengths.all("svg")) == 2 * len(order)
    assert not page.all("table", id="dataset-0-field-3"), "a field that is always null is none"


def test_bars_are_as_long_as_their_numbers(page: Element) -> None:
    table = page.one("table", id="dataset-0-field-1")
    widths = [float(re.findall(r"width: ([\d.]+)%", bar.attributes["style"])[0]) for bar in table.all("i")]
    numbers = [float(cell.replace(",", "")) for row in table.rows for cell in row[2:4]]
    assert widths == pytest.approx([100 * number / max(numbers) for number in numbers], abs=0.06)


def test_small_histograms_hold_every_sequence(page: Element) -> None:
    """Areas under the steps, over bins of half an octave, are numbers of rows."""
    (path,) = page.one("table", id="dataset-0-field-0-lengths").all("svg")[1].all("path")
    tops = [22 - float(top) for top in re.findall(r"V([\d.]+)H", path.attributes["d"])]
    first = page.one("table", id="dataset-0-field-0").rows[0][0]
    lengths = [row.thinking for row in ROWS if row.source == first and row.thinking]
    edges = sorted({round(2 ** (step / 2)) for step in range(40)})
    bins = [sum(low <= n < high for n in lengths) for low, high in itertools.pairwise(edges)]
    while not bins[0]:
        bins.pop(0)
    while not bins[-1]:
        bins.pop()
    assert tops == pytest.approx([21 * rows / max(bins) for rows in bins], abs=0.06)


@pytest.mark.parametrize(("distinct", "shown"), [(1, 1), (50, 50), (51, 20)])
def test_fields_of_many_values_show_the_most_frequent(tmp_path: Path, distinct: int, shown: int) -> None:
    values = [value for value in range(distinct) for _ in range(1 + (value % 30))]
    rows = [Packed([1] * (40 + n % 7), 1, 2 + n % 30, meta={"field": v}) for n, v in enumerate(values)]
    page = page_of(write_packed(tmp_path / "train", rows))
    ranked = sorted(Counter(map(str, values)).items(), key=lambda item: (-item[1], item[0]))[:shown]
    table = page.one("table", id="dataset-0-field-1").rows
    assert {row[0]: int(row[1]) for row in table[:shown]} == dict(ranked)
    if shown < distinct:
        (others,) = table[shown:]
        assert others[0] == f"{distinct - shown} other values"
        assert int(others[1]) == len(values) - sum(count for _, count in ranked)
    assert sum(int(row[1]) for row in table) == len(rows)


def test_a_value_in_every_row_does_not_fill_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "MAX_COUNTED", 60)
    rows = [Packed([1] * 4, 1, 3, meta={"url": "often" if n % 10 == 0 else f"page {n}"}) for n in range(2000)]
    counts = metadata.ValueCounts()
    for row in rows:
        assert row.meta
        counts.add({row.meta["url"]: 1})
        assert len(counts.rows) <= 60
    assert 200 - 2 * 2000 / 60 <= counts.rows["often"] <= 200, "the bound of Misra and Gries"
    table = page_of(write_packed(tmp_path / "train", rows)).one("table", id="dataset-0-field-1").rows
    assert [row[1] for row in table if row[0] == "often"] == ["200"]
    assert table[-1][0] == "other values"
    assert sum(int(row[1].replace(",", "")) for row in table) == 2000


def test_nested_and_strange_metadata(tmp_path: Path) -> None:
    metas: list[dict[str, Any]] = [
        {"a": {"b": "deep"}, "source": "inner", "list": [1, 2], "flag": True, "long": "x" * 300},
        {"a": {"b": "<script>b"}, "source": "", "list": [], "flag": False, "<script>name": 1},
    ]
    rows = [Packed([1, 2, 3], 1, 2, source="outer", meta=meta) for meta in metas]
    page = page_of(write_packed(tmp_path / "train", rows))
    found = {}
    for number in range(7):
        table = page.one("table", id=f"dataset-0-field-{number}")
        found[table.one("thead").all("th")[0].text] = {row[0] for row in table.rows}
    none = "without this field"
    assert found == {
        "source": {"outer"}, "meta.source": {"inner", ""}, "a.b": {"deep", "<script>b"},
        "list": {"[1,2]", "[]"}, "flag": {"true", "false"}, "long": {"x" * 100, none},
        "<script>name": {"1", none},
    }  # fmt: skip
    assert not page.all("script")


def test_more_fields_than_a_page_has_room_for(tmp_path: Path) -> None:
    rows = [Packed([1, 2, 3], 1, 2, meta={f"f{n:02d}": 1 for n in range(20)})]
    page = page_of(write_packed(tmp_path / "train", rows))
    assert page.one("table", id="dataset-0-field-16").one("thead").all("th")[0].text == "f15"
    assert not page.all("table", id="dataset-0-field-17")
    assert "4 more metadata fields are not shown" in page.text


@pytest.mark.parametrize("meta", ["{", "[1]", "7"])
def test_metadata_that_is_no_object(tmp_path: Path, meta: str) -> None:
    write_packed(tmp_path / "train", [Packed([1, 2], 0, 1)], lineage={"meta": [meta]})
    with pytest.raises(DamagedError, match="metadata"):
        report(tmp_path / "train")


def test_counts_say_what_became_of_every_row(tmp_path: Path) -> None:
    counts = {
        "in": 20, "quarantined": 3, "left_out": {"duplicate": 5, "filter:loop": 2}, "cut": {"thought": 4},
        "plan": {"bins": 7, "padding_fraction": 0.0125}, "text_bytes": 2_500_000,
    }  # fmt: skip
    write_packed(tmp_path / "train", random_rows(10), counts=counts)
    page = page_of(tmp_path / "train")
    assert page.one("table", id="dataset-0-counts").rows == [
        ["in", "20", "100.0 %"],
        ["became sequences", "10", "50.0 %"],
        ["in quarantine", "3", "15.0 %"],
        ["left out: duplicate", "5", "25.0 %"],
        ["left out: filter:loop", "2", "10.0 %"],
        ["sequences cut: thought", "4", "20.0 %"],
    ]
    assert "2.5 MB of text" in page.text
    assert "bins 7, padding fraction 0.0125." in page.text
    assert not page.all("div", class_="alarm")


def test_manifests_of_old_say_less(tmp_path: Path) -> None:
    prefix = write_packed(tmp_path / "train", random_rows(3))
    path = dataset_file(prefix, "manifest.json")
    manifest = read_manifest(path)
    kept = ("sequences", "tokens", "document_tokens", "thinking_tokens")
    counts = {key: manifest.about["counts"][key] for key in kept}
    write_manifest(path, Manifest("dataset", manifest.files, {**manifest.about, "counts": counts}))
    rows = page_of(prefix).one("table", id="dataset-0-counts").rows
    assert rows == [
        ["in", MISSING, MISSING],
        ["became sequences", "3", MISSING],
        ["in quarantine", *[MISSING] * 2],
    ]


@pytest.mark.parametrize(
    ("counts", "lineage", "sentence"),
    [
        ({"in": 9}, {}, "rows in: the manifest says 9, sequences, quarantine and left out 6"),
        ({"tokens": 7}, {}, "tokens: the manifest says 7, the index 36"),
        ({"by_source": {"wiki": {"tokens": 5}}}, {}, "tokens of wiki: the manifest says 5, the lineage 36"),
        ({}, {"thinking_tokens": [1, 3, 2, 2, 2, 2]}, "2 rows of the lineage tell other lengths"),
        ({}, {"thinking_tokens": [2, 2, 2, 2, 2, 3]}, "thinking_tokens: the manifest says 12"),
    ],
)  # fmt: skip
def test_parts_that_disagree_raise_an_alarm(
    tmp_path: Path, counts: dict[str, Any], lineage: dict[str, Any], sentence: str
) -> None:
    write_packed(tmp_path / "train", [Packed([1] * 6, 2, 4)] * 6, counts=counts, lineage=lineage)
    assert sentence in page_of(tmp_path / "train").one("div", id="dataset-0-disagreements").text


@pytest.mark.parametrize("changed", [None, 57])
def test_lengths_are_compared_in_every_batch(
    tmp_path: Path, changed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tpt_megatron.report.counts.ROWS_PER_BATCH", 10)
    rows = [Packed([1] * (6 + n), n % 3, 3) for n in range(60)]
    thinking = [row.thinking for row in rows]
    if changed:
        thinking[changed], thinking[changed - 1] = thinking[changed - 1], thinking[changed]
    write_packed(tmp_path / "train", rows, lineage={"thinking_tokens": thinking})
    alarms = page_of(tmp_path / "train").all("div", class_="alarm")
    assert ["2 rows of the lineage" in alarm.text for alarm in alarms] == ([True] if changed else [])


@pytest.mark.parametrize("seed", range(3))
def test_grouped_lengths_are_those_of_each_group(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpt_megatron.report.lengths.WAITING", 50)
    random = np.random.default_rng(seed)
    grouped, plain = GroupedLengths(), {group: Counter[int]() for group in range(4)}
    for _ in range(30):
        groups, lengths = random.integers(0, 3, 40), random.integers(0, 2**31 - 1 if seed else 30, 40)
        grouped.add(groups, lengths.astype(np.int32))
        for group, length in zip(groups.tolist(), lengths.tolist(), strict=True):
            plain[group][length] += 1
    for group, counter in plain.items():
        found = grouped.of(group)
        assert dict(zip(found.values.tolist(), found.counts.tolist(), strict=True)) == counter


def test_a_prefix_is_reported_alone(tmp_path: Path) -> None:
    for name in ("train", "held"):
        write_packed(tmp_path / "data" / name, random_rows(3))
    done = report(tmp_path / "data" / "train")
    assert done.output == tmp_path / "data" / "train.report.html"
    assert (done.datasets, done.runs, done.left_out) == (1, 0, 0)
    page = parse(done.output.read_text())
    assert [row[0] for row in page.one("table", id="datasets-table").rows] == ["train"]
    assert page.one("h1").text == "train"
    both = parse(report(tmp_path, tmp_path / "all.html").output.read_text())
    assert [row[0] for row in both.one("table", id="datasets-table").rows] == ["data/held", "data/train"]


def test_a_prefix_that_is_damaged_or_missing(tmp_path: Path) -> None:
    prefix = write_packed(tmp_path / "train", random_rows(3))
    with pytest.raises(InputError, match="no such folder, and no dataset of this name"):
        report(tmp_path / "tra")
    body = json.loads(dataset_file(prefix, "manifest.json").read_bytes())
    assert body["kind"] == "dataset"
    tokens = dataset_file(prefix, "bin")
    tokens.write_bytes(tokens.read_bytes()[:-2])
    with pytest.raises(DamagedError, match=r"train\.bin: wrong size"):
        report(prefix)
    assert not dataset_file(prefix, "report.html").exists()
