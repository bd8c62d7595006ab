"""One training sequence from a document and its thought (design.md, Composition).

Parts are encoded apart by an encoder that knows no control token; tags, begin and end are put in by id.
So nothing that a document says can end it, or open or close a thought.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tpt_megatron.config.schema import DataConfig
from tpt_megatron.errors import ConfigError
from tpt_megatron.tokenizer import TextTokenizer

Style = Literal["think_tags", "plain", "prefix", "none"]
TAGGED: tuple[Style, ...] = ("think_tags", "prefix")


@dataclass(frozen=True)
class Recipe:
    """How the parts go together, in token ids."""

    style: Style
    end: int
    begin: int | None
    think_open: int | None  # None where the style has no tags
    think_close: int | None
    newline: tuple[int, ...]
    blank_line: tuple[int, ...]

    @property
    def control(self) -> dict[str, int | None]:
        """The ids that are put in by id, by the name that a manifest gives them."""
        return {
            "end": self.end,
            "begin": self.begin,
            "think_open": self.think_open,
            "think_close": self.think_close,
        }


@dataclass(frozen=True)
class Composed:
    """One sequence. `thinking_start:thinking_end` is all that TPT adds: tags, line breaks and thought."""

    ids: npt.NDArray[np.int32]  # [tokens], end of document included
    thinking_start: int
    thinking_end: int  # == thinking_start in style "none"


def build_recipe(config: DataConfig, tokenizer: TextTokenizer) -> Recipe:
    """The recipe of `data.style` in the ids of `tokenizer`.

    Raises ConfigError, naming the key, for a control token that the tokenizer lacks or that plain text
    can spell.
    """
    end_token = config.end_token or tokenizer.hf.eos_token
    if not end_token:
        raise ConfigError(
            f"data.end_token: {tokenizer.name} has no end-of-sequence token to stand in",
            fix="set data.end_token to one of its tokens",
        )
    tags = config.style in TAGGED
    newline, blank_line = tokenizer.encode_plain(["\n", "\n\n"])
    return Recipe(
        style=config.style,
        end=_control(tokenizer, end_token, "data.end_token"),
        begin=_control(tokenizer, config.begin_token, "data.begin_token") if config.begin_token else None,
        think_open=_control(tokenizer, config.think_open, "data.think_open") if tags else None,
        think_close=_control(tokenizer, config.think_close, "data.think_close") if tags else None,
        newline=tuple(newline),
        blank_line=tuple(blank_line),
    )


def _control(tokenizer: TextTokenizer, token: str, key: str) -> int:
    identity = tokenizer.control_id(token, key)
    if identity not in tokenizer.control_ids():
        raise ConfigError(
            f"{key}: {token!r} is an ordinary token of {tokenizer.name}, which documents can spell",
            expected="an added token",
            fix="name one, or add it to the tokenizer",
        )
    return identity


def compose(recipe: Recipe, text_ids: Sequence[int], thinking_ids: Sequence[int]) -> Composed:
    """The sequence of one document; style "none" takes no thought."""
    text = [*text_ids]
    thought = [*_before(recipe), *thinking_ids, *_after(recipe)]
    begin = [] if recipe.begin is None else [recipe.begin]
    if recipe.style == "none":
        assert not thinking_ids, "style 'none' takes no thought"
        thought = []
    first, second = (thought, text) if recipe.style == "prefix" else (text, thought)
    ids = np.array([*begin, *first, *second, recipe.end], dtype=np.int32)
    start = len(begin) + (0 if recipe.style == "prefix" else len(text))
    return Composed(ids, start, start + len(thought))


def _before(recipe: Recipe) -> tuple[int, ...]:
    """What stands in front of the thought: `<think>\\n`, or a blank line."""
    if recipe.style == "plain":
        return recipe.blank_line
    return () if recipe.think_open is None else (recipe.think_open, *recipe.newline)


def _after(recipe: Recipe) -> tuple[int, ...]:
    """What closes it: `\\n</think>`, with one more line break where the text follows."""
    if recipe.think_close is None:
        return ()
    return (*recipe.newline, recipe.think_close, *(recipe.newline if recipe.style == "prefix" else ()))
