"""What a page shows of a dataset's tokens: decoded by their own tokenizer, marked, and never markup."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from packed_folder import Packed, write_packed
from report_reader import Element, parse

from tpt_megatron.errors import DamagedError
from tpt_megatron.report import decoding
from tpt_megatron.report.run import report
from tpt_megatron.tokenizer import TokenizerFacts, load_facts

HOSTILE = "<script>alert(1)</script>&amp; <think> </think> <|endoftext|>\0 end"


def page_of(path: Path) -> Element:
    return parse(report(path).output.read_text())


@pytest.fixture(scope="module")
def facts(tiny_tokenizer: Path) -> TokenizerFacts:
    return load_facts(str(tiny_tokenizer))


@pytest.fixture
def known(facts: TokenizerFacts, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """(name, fingerprint) of a tokenizer that opens without the process it takes: 6 s."""
    opened: list[str] = []

    def load(name: str) -> TokenizerFacts:
        opened.append(name)
        assert len(opened) == 1, "each tokenizer is opened once"
        return facts

    monkeypatch.setattr(decoding, "load_facts", load)
    return str(tiny_tokenizer), facts.fingerprint


def composed(facts: TokenizerFacts, text: str, thought: str, **more: Any) -> Packed:
    document, inner, newline = facts.encode_plain([text, thought, "\n"])
    begin, close = facts.control_id("<think>", ""), facts.control_id("</think>", "")
    middle = [begin, *newline, *inner, *newline, close]
    ids = [*document, *middle, facts.control_id("<|endoftext|>", "")]
    return Packed(ids, len(document), len(document) + len(middle), **more)


def test_a_sequence_is_shown_as_it_is_trained_on(
    tmp_path: Path, facts: TokenizerFacts, known: tuple[str, str]
) -> None:
    row = composed(facts, HOSTILE, "A thought.\n</div>", meta={"k": "<script>"}, source="<script>s")
    page = page_of(write_packed(tmp_path / "train", [row], known))
    (article,) = page.all("article", class_="packed")
    spans = [(span.attributes["class"], span.text) for span in article.one("div", class_="text").all("span")]
    assert spans == [
        ("d", HOSTILE.replace("\0", "\N{SYMBOL FOR NULL}")),
        ("t c", "<think>"),
        ("t", "\nA thought.\n</div>\n"),
        ("t c", "</think>"),
        ("d c", "<|endoftext|>"),
    ]
    assert article.one("div", class_="text").text == "".join(text for _, text in spans)
    assert article.one("h4").text == "doc-0"
    assert not page.all("script")
    for element in page.all():
        assert not any(name.startswith("on") for name in element.attributes)


def test_tokens_without_loss_are_marked(
    tmp_path: Path, facts: TokenizerFacts, known: tuple[str, str]
) -> None:
    rows = [composed(facts, "a document", f"thought {n}") for n in range(3)]
    for row in rows:
        row.trained = [int(row.start <= n < row.end) for n in range(len(row.ids))]
    page = page_of(write_packed(tmp_path / "train", rows, known))
    for article in page.all("article", class_="packed"):
        classes = [span.attributes["class"] for span in article.one("div", class_="text").all("span")]
        assert classes == ["d off", "t c on", "t on", "t c on", "d c off"]


def test_long_parts_are_cut_in_their_middle(
    tmp_path: Path, facts: TokenizerFacts, known: tuple[str, str]
) -> None:
    (word,) = {tuple(ids) for ids in facts.encode_plain(["é"])}
    document = [*[65] * 600, *[66] * 5000, *[67] * 300]
    assert len(word)
    row = Packed([*document, *[68] * 900], 5900, 6800)
    page = page_of(write_packed(tmp_path / "train", [row], known))
    spans = page.one("article", class_="packed").one("div", class_="text").all("span")
    assert [span.attributes["class"] for span in spans] == ["d", "cut-away", "d", "t"]
    head, gap, tail, thought = (span.text for span in spans)
    assert (head, tail, thought) == tuple(
        facts.decode([number] * count) for number, count in ((65, 600), (67, 300), (68, 900))
    )
    assert "5,000 tokens are not shown" in gap


def test_openings_are_the_most_frequent_first_words(
    tmp_path: Path, facts: TokenizerFacts, known: tuple[str, str]
) -> None:
    starts = ["Okay, let me think about"] * 7 + ["Okay, let me see what"] * 4 + ["Hm yes"] * 3
    thoughts = [f"{start} item {n} and more words follow here" for n, start in enumerate(starts)]
    rows = [composed(facts, f"The {n} quick brown fox", thought) for n, thought in enumerate(thoughts)]
    rows.append(Packed(facts.encode_plain(["no thought here"])[0], 2, 2))
    page = page_of(write_packed(tmp_path / "train", rows, known))
    for words in (3, 4, 5):
        counted = Counter(" ".join(thought.split()[:words]) for thought in thoughts)
        ranked = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
        expected = [[text, str(n), f"{100 * n / 14:.1f} %"] for text, n in ranked if n > 1]
        assert page.one("table", id=f"dataset-0-thoughts-{words}").rows == expected
    assert not page.all("table", id="dataset-0-documents-3")
    assert "No two of 15 begin with the same words" in page.text


def test_documents_behind_a_thought_open_too(
    tmp_path: Path, facts: TokenizerFacts, known: tuple[str, str]
) -> None:
    begin = facts.control_id("<think>", "")
    document, thought = facts.encode_plain(["One two three four", "thinking of it"])
    row = Packed([begin, begin, *thought, begin, *document], 1, len(thought) + 2)
    page = page_of(write_packed(tmp_path / "train", [row, row], known))
    assert page.one("table", id="dataset-0-documents-4").rows == [["One two three four", "2", "100.0 %"]]


def test_the_sample_is_the_same_each_time_and_all_over(
    tmp_path: Path, facts: TokenizerFacts, known: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tpt_megatron.report.datasets.SAMPLED_SEQUENCES", 20)
    rows = [composed(facts, f"number {n}", "same first words") for n in range(200)]
    write_packed(tmp_path / "train", rows, known)
    page = page_of(tmp_path)
    assert page.one("table", id="dataset-0-thoughts-3").rows == [["same first words", "20", "100.0 %"]]
    articles = page.all("article", class_="packed")
    numbers = [int(article.one("h4").text.removeprefix("doc-")) for article in articles]
    assert len(set(numbers)) == 5
    assert numbers == sorted(numbers)
    assert numbers[-1] - numbers[0] > 50
    for number, article in zip(numbers, articles, strict=True):
        assert article.one("div", class_="text").text.startswith(f"number {number}<think>")
        assert f"Sequence {number} of 200" in article.text


def test_a_tokenizer_that_differs(tmp_path: Path, known: tuple[str, str]) -> None:
    write_packed(tmp_path / "other", [Packed([1, 2], 0, 1)], (known[0], "e" * 64))
    page = page_of(tmp_path / "other")
    assert f"{known[0]} is now another tokenizer" in page.one("p", id="dataset-0-texts").text
    assert page.one("table", id="dataset-0-lengths")
    assert not page.all("article", class_="packed")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("gone", "the tokenizer 'gone' is not on this machine"),
        ("bad.model", "bad.model: not a SentencePiece model"),
    ],
)
def test_a_tokenizer_that_cannot_be_opened(tmp_path: Path, name: str, problem: str) -> None:
    write_packed(tmp_path / "gone", [Packed([1, 2], 0, 1)], (str(tmp_path / name), "f"))
    (tmp_path / "bad.model").write_bytes(b"no model")
    note = page_of(tmp_path / "gone").one("p", id="dataset-0-texts").text
    assert note.startswith(f"Not decoded: {problem}")


def test_ids_that_the_tokenizer_lacks(tmp_path: Path, facts: TokenizerFacts, known: tuple[str, str]) -> None:
    write_packed(tmp_path / "train", [Packed([1, facts.vocab_size], 0, 1)], known)
    with pytest.raises(DamagedError, match="an id outside the vocabulary"):
        report(tmp_path / "train")
