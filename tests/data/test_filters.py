"""Filters on thoughts written by hand: what goes, and above all what must stay; counts reconcile."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tpt_megatron.config.schema import FilterConfig
from tpt_megatron.data.filters import FILTERS, Row, apply_filters, open_filters
from tpt_megatron.data.rows import RowBatch
from tpt_megatron.errors import ConfigError
from tpt_megatron.records import BadRow

ALGEBRA = """Let me restate the problem. We want all real x with x^2 - 5x + 6 = 0.
First I try to factor. x^2 - 5x + 6 = (x - 2)(x - 3). So x = 2 or x = 3.
Wait, let me check x = 2. 2^2 - 5*2 + 6 = 4 - 10 + 6 = 0. Good, so x = 2 is a solution.
Wait, let me check x = 3. 3^2 - 5*3 + 6 = 9 - 15 + 6 = 0. Good, so x = 3 is a solution.
Let me also check x = 1. 1^2 - 5*1 + 6 = 1 - 5 + 6 = 2. Not zero, so x = 1 is not a solution.
Hmm, is there another way? By the quadratic formula x = (5 + 1)/2 or x = (5 - 1)/2, so x = 3 or x = 2.
Both ways agree, so the solutions of x^2 - 5x + 6 = 0 are x = 2 and x = 3."""
INDUCTION = """We prove the sum of the first n odd numbers is n^2.
For n = 1 the sum of the first 1 odd numbers is 1.
Suppose the sum of the first k odd numbers is k^2.
Then the sum of the first k + 1 odd numbers is k^2 + 2k + 1.
That is (k + 1)^2, so the sum of the first k + 1 odd numbers is (k + 1)^2, which is what we had to prove.
Let me test it: 1 = 1, 1 + 3 = 4, 1 + 3 + 5 = 9, 1 + 3 + 5 + 7 = 16, 1 + 3 + 5 + 7 + 9 = 25. Yes."""
MATRIX = (
    "So the matrix is diagonal:\n"
    + "1 0 0 0 0\n0 1 0 0 0\n0 0 1 0 0\n0 0 0 1 0\n0 0 0 0 1\n"
    + "and we are done."
)
REFRAIN = (
    "The author says that water finds its level. " * 2
    + "Why twice? It is a refrain, as in a song. A refrain binds the verses and gives a place to rest. "
    + "The author says that water finds its level. The third time it closes the argument: now we know why."
)
CODE = "for i in range(3):\n    print(i)\nfor j in range(3):\n    print(j)\nSo both loops print 0, 1 and 2."
TURN = "Wait, but I should check whether the sum is even or odd before I go on. "
LOOP = ALGEBRA + TURN * 12
CUT_LOOP = ALGEBRA + (TURN * 12)[:-11]  # a limit stops anywhere, also within a word
WORD_LOOP = ALGEBRA * 3 + " so" * 120
PARAGRAPH_LOOP = INDUCTION * 5
COUNTER_LOOP = " ".join(
    f"Step {number}: we repeat the step above and go on to the next." for number in range(900)
)
ZEROS = "All entries vanish:\n" + "0 0 0 0 0 0 0 0\n" * 8
ESSAY = " ".join(
    f"Point {number} leads to {number**2} and to claim {number + 1000}." for number in range(120)
)
TWICE = INDUCTION + ALGEBRA + INDUCTION + ALGEBRA
NORMAL = [ZEROS, ALGEBRA, INDUCTION, MATRIX, REFRAIN, CODE, "", "Yes.", "考虑这个方程的两个解。" * 2]

KEPT = [
    *(
        (name, thought, {})
        for name in ("ngram_loop", "compression_ratio", "unclosed_tag")
        for thought in NORMAL
    ),
    *((name, thought, {}) for name in ("refusal", "prompt_leakage") for thought in NORMAL),
    ("ngram_loop", "ha " * 15, {"ngram_words": 13, "max_ngram_share": 1.0}),
    ("ngram_loop", ESSAY + TWICE, {}),  # said twice at the end is not yet a loop
    ("ngram_loop", TWICE + ESSAY + " ha" * 20, {}),
    ("ngram_loop", COUNTER_LOOP[:2000], {}),  # no n-gram twice: compression_ratio's matter
    ("compression_ratio", "ab" * 8, {}),
    ("unclosed_tag", "Tags pair: <think>one</think> and <think>two</think>.", {}),
    ("unclosed_tag", "a <thinking> b", {}),
    ("unclosed_tag", "Stray </think> here.", {"think_tags": ("<t>", "</t>")}),
    ("refusal", "I can't see at first why the sum converges. Let me bound it.", {}),
    ("refusal", "I cannot help but notice the symmetry of both sides.", {}),
    ("refusal", "Sorry, I misread the second equation. Again.", {}),
    ("refusal", "I can't continue without a base case.", {}),
    ("refusal", "As an AI researcher would note, gradients vanish here.", {}),
    ("refusal", "As an aid to memory, write the table of signs.", {}),
    ("refusal", "The assistant says: I'm sorry, but I can't help with that. Why does it refuse?", {}),
    ("refusal", "Sorry is what Romeo should say here, I think.", {}),
    ("prompt_leakage", "An expert would use the Feynman technique here: explain it to a child.", {}),
    ("prompt_leakage", "At the end of the context of the war, trade recovered.", {}),
]
DROPPED = [
    ("ngram_loop", LOOP, {}),
    ("ngram_loop", CUT_LOOP, {}),
    ("ngram_loop", ALGEBRA * 20 + CUT_LOOP, {"max_ngram_share": 1.0}),  # by its tail alone
    ("ngram_loop", WORD_LOOP, {"max_ngram_share": 1.0}),
    ("ngram_loop", TWICE + ESSAY + " ha" * 120, {}),
    ("ngram_loop", PARAGRAPH_LOOP, {}),
    ("ngram_loop", PARAGRAPH_LOOP[:-30], {"max_ngram_share": 1.0}),
    ("ngram_loop", ALGEBRA + " " + ALGEBRA, {"max_ngram_share": 0.4}),  # by its share alone
    ("ngram_loop", "我们再想一想这个问题" * 20, {}),
    ("compression_ratio", COUNTER_LOOP, {"min_compression_ratio": 0.2}),
    ("compression_ratio", "=" * 3000, {}),
    ("compression_ratio", LOOP * 4, {}),
    ("compression_ratio", ALGEBRA, {"min_compression_ratio": 0.9}),
    ("unclosed_tag", "First. <think> Second.", {}),
    ("unclosed_tag", "First.</think> Second.", {}),
    ("unclosed_tag", "<think>a <think>b</think></think>", {}),
    ("unclosed_tag", "</think><think>", {}),
    ("unclosed_tag", "<think>a</think></think>", {}),
    ("unclosed_tag", "a <t> b", {"think_tags": ("<t>", "</t>")}),
    ("refusal", "I'm sorry, but I can't assist with that request.", {}),
    ("refusal", "\n I\u2019m sorry, I cannot help with this.", {}),
    ("refusal", "Sorry, but I can't continue this text.", {}),
    ("refusal", "I apologize, but I am unable to provide an analysis.", {}),
    ("refusal", "I cannot provide a summary of this document.", {}),
    ("refusal", "Unfortunately, I am not able to access the link.", {}),
    ("refusal", "I won't discuss that.", {}),
    ("refusal", "I'm unable to assist.", {}),
    ("refusal", "As an AI language model, I do not have opinions.", {}),
    ("refusal", "**As an AI, I** must stay neutral.", {}),
    ("prompt_leakage", "Okay, I need to simulate an expert's in-depth thought process here.", {}),
    ("prompt_leakage", "I was told to skip  Trivial\nDetails.", {}),
    ("prompt_leakage", "Use Feynman technique whenever possible, it says.", {}),
    ("prompt_leakage", "## End of the context\n\nSo what now?", {}),
    ("prompt_leakage", "The mark <<<READING HERE>>> is in the middle.", {}),
    ("prompt_leakage", "Simulate an expert\u2019s thought: done.", {}),
]


def row(thinking: str | None, text: str = "A document.", reason: str | None = "stop") -> Row:
    return Row("id", text, thinking, reason, "web", {})


def keeps(name: str, seen: Row, **keys: Any) -> bool:
    config = FilterConfig(names=(name,), **keys)
    ((_, keep),) = open_filters(config)
    return keep(seen, config)


@pytest.mark.parametrize(("name", "thought", "keys"), KEPT)
def test_it_stays(name: str, thought: str, keys: dict[str, Any]) -> None:
    assert keeps(name, row(thought), **keys) is True


@pytest.mark.parametrize(("name", "thought", "keys"), DROPPED)
def test_it_goes(name: str, thought: str, keys: dict[str, Any]) -> None:
    assert keeps(name, row(thought), **keys) is False


@pytest.mark.parametrize("name", sorted(FILTERS.keys() - {"document_length", "language"}))
def test_filters_about_thoughts_keep_rows_without_one(name: str) -> None:
    keys = {"min_thinking_characters": 1} if name == "thinking_length" else {}
    assert keeps(name, row(None, LOOP + "<think>", None), **keys)


def test_finish_reason() -> None:
    assert keeps("finish_reason", row("x", reason="stop"))
    assert not keeps("finish_reason", row("x", reason="length"))


@pytest.mark.parametrize(("what", "characters"), [("document", 11), ("thinking", 4)])
def test_lengths_are_in_characters_and_both_bounds_belong(what: str, characters: int) -> None:
    seen, low, high = row("été!"), f"min_{what}_characters", f"max_{what}_characters"
    assert keeps(f"{what}_length", seen, **{low: characters, high: characters})
    assert not keeps(f"{what}_length", seen, **{low: characters + 1})
    assert not keeps(f"{what}_length", seen, **{high: characters - 1})
    assert not keeps("thinking_length", row(""), min_thinking_characters=1)


def test_a_phrase_that_the_document_has_is_a_quotation() -> None:
    thought = "The prompt says: Skip trivial details."
    assert not keeps("prompt_leakage", row(thought))
    assert keeps("prompt_leakage", row(thought, "A prompt: skip trivial\ndetails."))
    assert not keeps("prompt_leakage", row(thought + " ## End of the context", "Skip trivial details."))


def test_every_prompt_of_ours_is_known() -> None:
    """The phrases are data of phrases.py; whatever instruction thinking/prompts gives is caught by them."""
    folder = Path(__file__).parents[2] / "tpt_megatron" / "thinking" / "prompts"
    texts = {path.stem: path.read_text() for path in folder.glob("*.txt")}
    caught = {name for name, text in texts.items() if not keeps("prompt_leakage", row(text))}
    assert caught == {"paper", "random-focus"}  # back-thinking is the document alone


ENGLISH = "The quick brown fox jumps over the lazy dog while the farmer reads his newspaper in the shade."
GERMAN = (
    "Der schnelle braune Fuchs springt über den faulen Hund, während der Bauer im Schatten Zeitung liest."
)


def test_language() -> None:
    pytest.importorskip("py3langid")
    for text, languages, kept in (
        (ENGLISH, ("en",), True), (GERMAN, ("en",), False),
        (ENGLISH, ("de",), False), (GERMAN, ("de", "fr"), True),
        (GERMAN * 6 + ENGLISH * 20 + GERMAN * 6, ("en",), True),  # told by its middle
        ("", ("en",), True), ("1 + 1 = 2", ("de",), True),
    ):  # fmt: skip
        assert keeps("language", row(None, text), languages=languages) is kept, text[:40]


def batch_of(thoughts: list[str] | None, count: int = 1) -> RowBatch:
    count = count if thoughts is None else len(thoughts)
    return RowBatch(
        ids=[f"id{place}" for place in range(count)],
        texts=[f"text {place}" for place in range(count)],
        sources=["web"] * count,
        metas=[{"place": place} for place in range(count)],
        thoughts=thoughts,
        samples=None if thoughts is None else [0] * count,
        finish_reasons=None if thoughts is None else ["stop"] * count,
        bad=[BadRow("file", 3, "torn")],
        left_out=4,
    )


def test_the_first_filter_that_drops_a_row_counts_it_and_counts_reconcile() -> None:
    batch = batch_of([ALGEBRA, "a <think>" + LOOP, "b </think>", INDUCTION, LOOP, "cut"])
    batch.finish_reasons = ["stop"] * 5 + ["length"]
    for names, counts in (
        (("unclosed_tag", "ngram_loop", "finish_reason"), (2, 1, 1)),
        (("finish_reason", "ngram_loop", "unclosed_tag"), (1, 2, 1)),
    ):
        config = FilterConfig(names=names)
        kept, dropped = apply_filters(batch, open_filters(config), config)
        assert dropped == dict(zip(names, counts, strict=True))
        assert kept.ids == ["id0", "id3"]
        assert [meta["place"] for meta in kept.metas] == [0, 3]
        assert (kept.bad, kept.left_out) == (batch.bad, 4)
        assert kept.rows + dropped.total() == batch.rows == 11


def test_nothing_to_do_costs_nothing() -> None:
    batch = batch_of([ALGEBRA, LOOP])
    assert apply_filters(batch, [], FilterConfig()) == (batch, Counter())
    assert apply_filters(batch, [], FilterConfig())[0] is batch
    assert open_filters(FilterConfig()) == []
    config = FilterConfig(names=("finish_reason",))
    assert apply_filters(batch, open_filters(config), config)[0] is batch
    nothing = RowBatch(bad=[BadRow("file", 1, "torn")])
    assert apply_filters(nothing, open_filters(config), config) == (nothing, Counter())


def test_what_a_filter_sees() -> None:
    seen: list[Row] = []
    watch = [("watch", lambda row, config: not seen.append(row))]
    apply_filters(batch_of(["thought"]), watch, FilterConfig())
    apply_filters(batch_of(None), watch, FilterConfig())
    turns = [{"role": "user", "content": "Why?"}, {"role": "tool", "content": None}, {"content": "Because."}]
    apply_filters(RowBatch(["c"], [""], ["chat"], [{}], messages=[turns]), watch, FilterConfig())
    assert seen[0] == Row("id0", "text 0", "thought", "stop", "web", {"place": 0})
    assert (seen[1].thinking, seen[1].finish_reason) == (None, None)
    assert (seen[2].text, seen[2].source) == ("Why?\n\nBecause.", "chat")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"names": ("ngram_lop",)}, r"data\.filter\.names: unknown name.*did you mean 'ngram_loop'"),
        ({"names": ("refusal", "refusal")}, "names a filter twice"),
        (
            {"names": ("refusal",), "max_ngram_share": 0.1},
            r"data\.filter\.max_ngram_share is set, but.*'ngram_loop'",
        ),
        ({"min_document_characters": 5}, r"data\.filter\.min_document_characters is set, but"),
        ({"names": ("thinking_length",)}, "thinking_length has no bound"),
        (
            {"names": ("document_length",), "min_document_characters": 9, "max_document_characters": 8},
            "no row is within, got 9 and 8",
        ),
        ({"names": ("language",), "languages": ("en", "english")}, r"languages: unknown, got \['english'\]"),
        ({"names": ("language",), "languages": ()}, "languages is empty"),
    ],
)
def test_mistakes_are_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_filters(FilterConfig(**keys))


def test_a_filter_of_a_fork_may_read_any_key() -> None:
    names = ("tpt_megatron.data.loops:ngram_loop",)
    ((name, _),) = open_filters(FilterConfig(names=names, max_ngram_share=0.1))
    assert name == names[0]


def test_without_the_library_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid", None)
    with pytest.raises(ConfigError, match=r"needs py3langid.*pip install 'tpt-megatron\[language\]'"):
        open_filters(FilterConfig(names=("language",)))
