"""Composition against a naive reference that shares no code with it, and text that tries to break out."""

from pathlib import Path
from typing import get_args

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tpt_megatron.config.schema import DataConfig
from tpt_megatron.data.compose import Style, build_recipe, compose
from tpt_megatron.errors import ConfigError
from tpt_megatron.tokenizer import TextTokenizer

STYLES = get_args(Style)
PARTS = [
    ("The quick brown fox.", "Let me think.\nSteps."),
    ("trailing newline\n", "\nleading newline"),
    ("a </think> b <|endoftext|> c <think>", "</think><|endoftext|>"),
    ("日本語 🎉 \u0000", ""),
]


def naive(folder: Path, style: str, text: str, thinking: str, begin: bool) -> tuple[list[int], list[int]]:
    """Ids, and for each of them 1 where TPT added it; from the bare BPE model with no added token."""
    hf = AutoTokenizer.from_pretrained(folder)
    bare = Tokenizer(hf.backend_tokenizer.model)
    bare.pre_tokenizer = hf.backend_tokenizer.pre_tokenizer
    open_tag, close_tag, end = hf.convert_tokens_to_ids(["<think>", "</think>", "<|endoftext|>"])

    def plain(string: str, added: int) -> list[tuple[int, int]]:
        return [(identity, added) for identity in bare.encode(string).ids]

    document = plain(text, 0)
    if style == "think_tags":
        middle = [(open_tag, 1), *plain("\n", 1), *plain(thinking, 1), *plain("\n", 1), (close_tag, 1)]
        pairs = document + middle
    elif style == "plain":
        pairs = document + plain("\n\n", 1) + plain(thinking, 1)
    elif style == "prefix":
        middle = [(open_tag, 1), *plain("\n", 1), *plain(thinking, 1), *plain("\n", 1), (close_tag, 1)]
        pairs = middle + plain("\n", 1) + document
    else:
        pairs = document
    pairs = ([(end, 0)] if begin else []) + pairs + [(end, 0)]
    return [identity for identity, _ in pairs], [added for _, added in pairs]


@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize(("text", "thinking"), PARTS)
@pytest.mark.parametrize("style", STYLES)
def test_each_style_equals_the_naive_reference(
    tiny_tokenizer: Path, style: Style, text: str, thinking: str, begin: bool
) -> None:
    config = DataConfig(style=style, begin_token="<|endoftext|>" if begin else None)
    tokenizer = TextTokenizer(str(tiny_tokenizer))
    text_ids, thinking_ids = tokenizer.encode_plain([text, "" if style == "none" else thinking])
    composed = compose(build_recipe(config, tokenizer), text_ids, thinking_ids)
    ids, added = naive(tiny_tokenizer, style, text, thinking, begin)
    assert composed.ids.tolist() == ids
    span = range(composed.thinking_start, composed.thinking_end)
    assert [int(place in span) for place in range(len(ids))] == added
    assert len(span) > 0 or style == "none"


@pytest.mark.parametrize("style", STYLES)
def test_control_strings_inside_stay_text(tiny_tokenizer: Path, style: Style) -> None:
    tokenizer = TextTokenizer(str(tiny_tokenizer))
    recipe = build_recipe(DataConfig(style=style), tokenizer)
    hostile = "x<think>y</think>z<|endoftext|>"
    text_ids, thinking_ids = tokenizer.encode_plain([hostile, "" if style == "none" else hostile])
    ids = compose(recipe, text_ids, thinking_ids).ids.tolist()
    tags = int(style in ("think_tags", "prefix"))
    counts = [ids.count(tokenizer.control_id(t, "")) for t in ("<think>", "</think>", "<|endoftext|>")]
    assert counts == [tags, tags, 1]
    assert tokenizer.decode(ids).count(hostile) == (1 if style == "none" else 2)


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
def test_a_control_token_that_cannot_be_is_named(tiny_tokenizer: Path, key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"data.{key}"):
        build_recipe(DataConfig(**{key: value}), TextTokenizer(str(tiny_tokenizer)))  # type: ignore[arg-type]


def test_styles_without_tags_need_no_tags_and_every_style_an_end(tiny_tokenizer: Path) -> None:
    tokenizer = TextTokenizer(str(tiny_tokenizer))
    recipe = build_recipe(DataConfig(style="plain", think_open="<t>", think_close="</t>"), tokenizer)
    assert (recipe.think_open, recipe.think_close) == (None, None)
    tokenizer.hf.eos_token = None
    with pytest.raises(ConfigError, match=r"data\.end_token"):
        build_recipe(DataConfig(), tokenizer)
