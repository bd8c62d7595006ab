"""Composition against a naive reference that shares no code with it, and text that tries to break out."""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tpt_megatron.config.schema import DataConfig
from tpt_megatron.data.compose import ComposedBatch, Style, build_recipe, compose, compose_batch
from tpt_megatron.data.tokenize import Encoded, build_encoder
from tpt_megatron.errors import ConfigError
from tpt_megatron.tokenizer import TextTokenizer, TokenizerFacts, facts_of

STYLES = get_args(Style)
PARTS = [
    ("The quick brown fox.", "Let me think.\nSteps."),
    ("trailing newline\n", "\nleading newline"),
    ("a </think> b <|endoftext|> c <think>", "</think><|endoftext|>"),
    ("日本語 🎉 \u0000", ""),
    ("", "a thought about nothing"),
    ("To think is to put a question, to look at it from each side. " * 4, "steps " * 30),
    ("Water boils at 100 degrees.", "steps " * 30),
    ("", ""),
]


@pytest.fixture(scope="module")
def facts(tiny_tokenizer: Path) -> TokenizerFacts:
    return TextTokenizer(str(tiny_tokenizer))


@cache
def bare_model(folder: Path) -> tuple[Tokenizer, list[int]]:
    """The BPE model with no added token, and the ids of the tags and the end."""
    hf = AutoTokenizer.from_pretrained(folder)
    bare = Tokenizer(hf.backend_tokenizer.model)
    bare.pre_tokenizer = hf.backend_tokenizer.pre_tokenizer
    return bare, hf.convert_tokens_to_ids(["<think>", "</think>", "<|endoftext|>"])


def naive(folder: Path, style: str, text: str, thinking: str, begin: bool, keep: int | None = None) -> Any:
    """Ids, and for each of them 1 where TPT added it; from the bare BPE model.

    `keep`: so many ids of the thought.
    """
    bare, (open_tag, close_tag, end) = bare_model(folder)

    def plain(string: str, added: int) -> list[tuple[int, int]]:
        return [(identity, added) for identity in bare.encode(string).ids]

    document, thought = plain(text, 0), plain(thinking, 1)[:keep]
    tagged = [(open_tag, 1), *plain("\n", 1), *thought, *plain("\n", 1), (close_tag, 1)]
    if style == "think_tags":
        pairs = document + tagged
    elif style == "plain":
        pairs = document + plain("\n\n", 1) + thought
    elif style == "prefix":
        pairs = tagged + plain("\n", 1) + document
    else:
        pairs = document
    pairs = ([(end, 0)] if begin else []) + pairs + [(end, 0)]
    return [identity for identity, _ in pairs], [added for _, added in pairs]


@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_each_style_equals_the_naive_reference(
    tiny_tokenizer: Path, facts: TokenizerFacts, style: Style, begin: bool
) -> None:
    config = DataConfig(style=style, begin_token="<|endoftext|>" if begin else None)
    for text, thinking in PARTS:
        text_ids, thinking_ids = facts.encode_plain([text, "" if style == "none" else thinking])
        composed = compose(build_recipe(config, facts), text_ids, thinking_ids)
        ids, added = naive(tiny_tokenizer, style, text, thinking, begin)
        assert composed.ids.tolist() == ids
        span = range(composed.thinking_start, composed.thinking_end)
        assert [int(place in span) for place in range(len(ids))] == added
        assert len(span) > 0 or style == "none"


def run(facts: TokenizerFacts, style: Style, dtype: str = "<u2", **data: Any) -> ComposedBatch:
    recipe = build_recipe(DataConfig(style=style, **data), facts)
    encoder = build_encoder(facts, "huggingface")
    thought = None if style == "none" else encoder.encode([thinking for _, thinking in PARTS])
    return compose_batch(recipe, encoder.encode([text for text, _ in PARTS]), thought, np.dtype(dtype))


def expected(
    folder: Path, style: str, begin: bool, budget: int | None, window: int, policy: str
) -> tuple[dict[int, tuple[list[int], list[int]]], Counter[str]]:
    """Row to sequence and spans by the naive reference, rules applied one row at a time; and the counts."""
    out, counts = {}, Counter[str]()
    for row, (text, thinking) in enumerate(PARTS):
        ids, added = naive(folder, style, text, thinking, begin, budget)
        counts["thought_cut_at_budget"] += ids != naive(folder, style, text, thinking, begin)[0]
        bare = len(naive(folder, style, text, "", begin)[0])
        if len(ids) > window and policy == "drop":
            counts["dropped_long"] += 1
            continue
        if len(ids) > window and policy == "truncate_thought" and bare <= window and len(ids) > bare:
            ids, added = naive(folder, style, text, thinking, begin, window - bare)
            assert len(ids) == window
            counts["thought_cut_to_window"] += 1
        counts["longer_than_window"] += len(ids) > window
        out[row] = ids, added
    return out, +counts


@pytest.mark.parametrize(("dtype", "begin"), [("<u2", False), ("<i4", True)])
@pytest.mark.parametrize("policy", ["split", "truncate_thought", "drop"])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("budget", "window"), [(None, 8192), (9, 40), (None, 24), (5, 8192)])
def test_a_batch_equals_the_naive_reference(
    tiny_tokenizer: Path, facts: TokenizerFacts, style: Style, policy: Any, budget: int | None, window: int,
    dtype: str, begin: bool,
) -> None:  # fmt: skip
    batch = run(
        facts, style, dtype, long_documents=policy, max_thinking_tokens=budget, sequence_length=window,
        begin_token="<|endoftext|>" if begin else None,
    )  # fmt: skip
    sequences, counts = expected(tiny_tokenizer, style, begin, budget, window, policy)
    assert batch.ids.dtype == np.dtype(dtype)
    assert batch.kept.tolist() == list(sequences)
    assert batch.ids.tolist() == [identity for ids, _ in sequences.values() for identity in ids]
    assert batch.lengths.tolist() == [len(ids) for ids, _ in sequences.values()]
    spans = zip(batch.thinking_start.tolist(), batch.thinking_end.tolist(), strict=True)
    for (start, end), (ids, added) in zip(spans, sequences.values(), strict=True):
        assert [int(start <= place < end) for place in range(len(ids))] == added
    assert (batch.counts, batch.bad, batch.trained) == (counts, [], None)
    assert [a.dtype for a in (batch.lengths, batch.thinking_start, batch.thinking_end)] == [np.int32] * 3


@pytest.mark.parametrize("style", STYLES)
def test_a_sequence_as_long_as_the_window_is_not_long(
    tiny_tokenizer: Path, facts: TokenizerFacts, style: Style
) -> None:
    window = len(naive(tiny_tokenizer, style, *PARTS[5], False)[0])  # the longest
    batch = run(facts, style, long_documents="drop", sequence_length=window)
    assert (batch.kept.tolist(), batch.counts) == (list(range(len(PARTS))), {})
    batch = run(facts, style, long_documents="drop", sequence_length=window - 1)
    assert (batch.kept.tolist(), batch.counts) == ([0, 1, 2, 3, 4, 6, 7], {"dropped_long": 1})


@pytest.mark.parametrize("style", STYLES)
def test_no_rows_make_no_sequences(facts: TokenizerFacts, style: Style) -> None:
    nothing = Encoded(np.zeros(0, np.uint32), np.zeros(1, np.int64))
    recipe = build_recipe(DataConfig(style=style), facts)
    batch = compose_batch(recipe, nothing, None if style == "none" else nothing, np.dtype("<u2"))
    assert (len(batch.ids), len(batch.lengths), len(batch.thinking_start), batch.bad) == (0, 0, 0, [])


def encoded(rows: Sequence[Sequence[int]]) -> Encoded:
    return Encoded(
        np.array([i for row in rows for i in row], np.uint32),
        np.cumsum([0, *map(len, rows)]).astype(np.int64),
    )


@pytest.mark.parametrize("token", ["<|endoftext|>", "<think>", "</think>", None])
@pytest.mark.parametrize("where", ["text", "thought"])
def test_an_encoder_that_breaks_its_promise_is_not_believed(
    facts: TokenizerFacts, token: str | None, where: str
) -> None:
    """<|endoftext|> is the smallest id here, the tags the largest: either bound is tried."""
    leak = 2**31 if token is None else facts.control_id(token, "")
    good = [[5, 6], [7, 8], [], [9]]
    leaky = [[5, 6], [7, leak, 8, leak], [], [leak]]
    recipe = build_recipe(DataConfig(), facts)
    text, thought = (leaky, good) if where == "text" else (good, leaky)
    batch = compose_batch(recipe, encoded(text), encoded(thought), np.dtype("<u2"))
    assert batch.kept.tolist() == [0, 2]
    reason = f"the {where} encodes to id {leak}, which is no text of this tokenizer"
    assert batch.bad == [(1, reason), (3, reason)]
    parts = [compose(recipe, row, row).ids.tolist() for row in ([5, 6], [])]
    assert batch.ids.tolist() == parts[0] + parts[1]


def test_a_control_id_among_ordinary_ones_is_found_too(tiny_tokenizer: Path) -> None:
    """A tokenizer whose end of document stands in the middle of its vocabulary."""
    hf = AutoTokenizer.from_pretrained(tiny_tokenizer)
    bare = Tokenizer.from_str(hf.backend_tokenizer.to_str())
    middle = bare.id_to_token(300)
    assert middle is not None
    bare.add_special_tokens([middle])
    facts = facts_of(PreTrainedTokenizerFast(tokenizer_object=bare, eos_token=middle), "t")
    recipe = build_recipe(DataConfig(style="none"), facts)
    assert recipe.end == 300
    assert recipe.ordinary.controls == (300,)
    batch = compose_batch(recipe, encoded([[5], [6, 300], [7]]), None, np.dtype("<u2"))
    assert (batch.kept.tolist(), [row for row, _ in batch.bad]) == ([0, 2], [1])
    assert 300 not in facts.encode_plain([middle.replace("Ġ", " ")])[0]


@pytest.mark.parametrize("style", STYLES)
def test_control_strings_inside_stay_text(facts: TokenizerFacts, style: Style) -> None:
    recipe = build_recipe(DataConfig(style=style), facts)
    hostile = "x<think>y</think>z<|endoftext|>"
    text_ids, thinking_ids = facts.encode_plain([hostile, "" if style == "none" else hostile])
    ids = compose(recipe, text_ids, thinking_ids).ids.tolist()
    tags = int(style in ("think_tags", "prefix"))
    counts = [ids.count(facts.control_id(t, "")) for t in ("<think>", "</think>", "<|endoftext|>")]
    assert counts == [tags, tags, 1]
    assert facts.decode(ids).count(hostile) == (1 if style == "none" else 2)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("end_token", "<gone>"),
        ("end_token", "e"),
        ("begin_token", "<s>"),
        ("think_open", "<t>"),
        ("think_close", "x"),
    ],
)
def test_a_control_token_that_cannot_be_is_named(facts: TokenizerFacts, key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"data.{key}"):
        build_recipe(DataConfig(**{key: value}), facts)  # type: ignore[arg-type]


def test_styles_without_tags_need_no_tags_and_every_style_an_end(tiny_tokenizer: Path) -> None:
    facts = TextTokenizer(str(tiny_tokenizer))
    recipe = build_recipe(DataConfig(style="plain", think_open="<t>", think_close="</t>"), facts)
    assert (recipe.think_open, recipe.think_close) == (None, None)
    with pytest.raises(ConfigError, match=r"data\.end_token"):
        build_recipe(DataConfig(), TokenizerFacts(**{**facts.__getstate__(), "eos_token": None}))
