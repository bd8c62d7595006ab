"""Training sequences from documents and their thoughts (design.md, Composition).

Parts are encoded apart by an encoder that knows no control token; tags, begin and end are put in by id.
So nothing that a document says can end it, or open or close a thought.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tpt_megatron.config.schema import DataConfig
from tpt_megatron.data.tokenize import Encoded
from tpt_megatron.errors import ConfigError
from tpt_megatron.tokenizer import TokenizerFacts

Style = Literal["think_tags", "plain", "prefix", "none"]
LongDocuments = Literal["split", "truncate_thought", "drop"]
TAGGED: tuple[Style, ...] = ("think_tags", "prefix")


@dataclass(frozen=True)
class OrdinaryIds:
    """What plain text may encode to: `low <= id < high`, none of `controls`.

    A range, because a table's look-up costs 1 ns a token and two bounds a tenth of that; `controls` holds
    only those control ids that a bound does not catch, in most tokenizers none.
    """

    low: int
    high: int
    controls: tuple[int, ...]

    def bad_rows(self, encoded: Encoded) -> list[tuple[int, str]]:
        """Each row that breaks the encoder's promise, and how; in order."""
        ids = encoded.ids
        if not len(ids):
            return []
        wrong = (self.low > 0 and int(ids.min()) < self.low) or int(ids.max()) >= self.high
        if not wrong and not any((ids == control).any() for control in self.controls):
            return []
        places = np.flatnonzero((ids < self.low) | (ids >= self.high) | np.isin(ids, self.controls))
        rows = np.searchsorted(encoded.offsets, places, side="right") - 1
        first = {int(row): int(ids[place]) for row, place in zip(rows[::-1], places[::-1], strict=True)}
        return [
            (row, f"encodes to id {first[row]}, which is no text of this tokenizer") for row in sorted(first)
        ]


def ordinary_ids(facts: TokenizerFacts, controls: Sequence[int]) -> OrdinaryIds:
    """The check of what `facts` encodes text to; `controls` are the ids that a sequence is made with."""
    ordinary = facts.ordinary_ids - set(controls)
    if not ordinary:
        raise ConfigError(f"data.tokenizer: {facts.name} has no token for text")
    low, high = min(ordinary), max(ordinary) + 1
    return OrdinaryIds(low, high, tuple(sorted({i for i in controls if low <= i < high})))


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
    ordinary: OrdinaryIds
    window: int  # data.sequence_length
    max_thinking_tokens: int | None
    long_documents: LongDocuments

    @property
    def control(self) -> dict[str, int | None]:
        """The ids that are put in by id, by the name that a manifest gives them."""
        return {
            "end": self.end,
            "begin": self.begin,
            "think_open": self.think_open,
            "think_close": self.think_close,
        }

    @property
    def before_thought(self) -> tuple[int, ...]:
        """What stands in front of the thought: `<think>\\n`, or a blank line."""
        if self.style == "plain":
            return self.blank_line
        return () if self.think_open is None else (self.think_open, *self.newline)

    @property
    def after_thought(self) -> tuple[int, ...]:
        """What closes it: `\\n</think>`, with one more line break where the text follows."""
        if self.think_close is None:
            return ()
        return (*self.newline, self.think_close, *(self.newline if self.style == "prefix" else ()))


@dataclass(frozen=True)
class Composed:
    """One sequence. `thinking_start:thinking_end` is all that TPT adds: tags, line breaks and thought."""

    ids: npt.NDArray[np.int32]  # [tokens], end of document included
    thinking_start: int
    thinking_end: int  # == thinking_start in style "none"


@dataclass(frozen=True)
class ComposedBatch:
    """The sequences of a batch, one after the other; sequence i is the batch's row `kept[i]`.

    rows = len(kept) + len(bad) + counts["dropped_long"].
    """

    ids: npt.NDArray[np.integer[Any]]  # [tokens], read-only
    lengths: npt.NDArray[np.int32]  # [sequences]
    thinking_start: npt.NDArray[np.int32]  # [sequences], in the sequence
    thinking_end: npt.NDArray[np.int32]  # [sequences]
    kept: npt.NDArray[np.int64]  # [sequences]
    bad: list[tuple[int, str]]  # (row, reason)
    # thought_cut_at_budget, thought_cut_to_window, dropped_long, longer_than_window (kept as they are)
    counts: Counter[str]
    trained: npt.NDArray[np.bool_] | None = None  # [tokens]: carries loss as a label; conversations only


def build_recipe(config: DataConfig, facts: TokenizerFacts) -> Recipe:
    """The recipe of `data.style` in the ids of the tokenizer.

    Raises ConfigError, naming the key, for a control token that the tokenizer lacks or that plain text
    can spell.
    """
    if config.style == "chat":
        raise ConfigError("data.style=chat is composed by a chat template", fix="see data/chat.py")
    tags = config.style in TAGGED
    newline, blank_line = facts.encode_plain(["\n", "\n\n"])
    end = end_id(config, facts)
    begin = control_id(facts, config.begin_token, "data.begin_token") if config.begin_token else None
    think_open = control_id(facts, config.think_open, "data.think_open") if tags else None
    think_close = control_id(facts, config.think_close, "data.think_close") if tags else None
    controls = [i for i in (end, begin, think_open, think_close) if i is not None]
    return Recipe(
        style=config.style,
        end=end,
        begin=begin,
        think_open=think_open,
        think_close=think_close,
        newline=tuple(newline),
        blank_line=tuple(blank_line),
        ordinary=ordinary_ids(facts, controls),
        window=config.sequence_length,
        max_thinking_tokens=config.max_thinking_tokens,
        long_documents=config.long_documents,
    )


def end_id(config: DataConfig, facts: TokenizerFacts) -> int:
    """The id that ends a document: `data.end_token`, or the tokenizer's end of sequence."""
    end_token = config.end_token or facts.eos_token
    if not end_token:
        raise ConfigError(
            f"data.end_token: {facts.name} has no end-of-sequence token to stand in",
            fix="set data.end_token to one of its tokens",
        )
    return control_id(facts, end_token, "data.end_token")


def control_id(facts: TokenizerFacts, token: str, key: str) -> int:
    """The id of a token that no document can spell; ConfigError names the key."""
    identity = facts.control_id(token, key)
    if identity not in facts.control_ids():
        raise ConfigError(
            f"{key}: {token!r} is an ordinary token of {facts.name}, which documents can spell",
            expected="an added token",
            fix="name one, or add it to the tokenizer",
        )
    return identity


def compose(recipe: Recipe, text_ids: Sequence[int], thinking_ids: Sequence[int]) -> Composed:
    """The sequence of one document, nothing cut: what `compose_batch` does, to be read.

    Style "none" takes no thought.
    """
    text = [*text_ids]
    thought = [*recipe.before_thought, *thinking_ids, *recipe.after_thought]
    begin = [] if recipe.begin is None else [recipe.begin]
    if recipe.style == "none":
        assert not thinking_ids, "style 'none' takes no thought"
        thought = []
    first, second = (thought, text) if recipe.style == "prefix" else (text, thought)
    ids = np.array([*begin, *first, *second, recipe.end], dtype=np.int32)
    start = len(begin) + (0 if recipe.style == "prefix" else len(text))
    return Composed(ids, start, start + len(thought))


def compose_batch(
    recipe: Recipe, text: Encoded, thought: Encoded | None, dtype: np.dtype[Any]
) -> ComposedBatch:
    """The sequences of many documents, as `dtype` (layout.token_dtype); `thought` is None in style "none".

    A thought is cut to `max_thinking_tokens`, then a sequence longer than the window is treated as
    `long_documents` says: tags and end always stay, and a document that leaves no room for its thought's
    tags is left as it is. Rows whose ids are not text's are `bad`: an encoder broke its promise.
    """
    assert (thought is None) == (recipe.style == "none")
    counts: Counter[str] = Counter()
    problems = {row: f"the text {reason}" for row, reason in recipe.ordinary.bad_rows(text)}
    texts = np.diff(text.offsets)  # [rows], in tokens
    frame = 1 + (recipe.begin is not None) + len(recipe.before_thought) + len(recipe.after_thought)
    thoughts = np.zeros_like(texts)  # [rows], in tokens
    if thought is not None:
        problems |= {row: f"the thought {reason}" for row, reason in recipe.ordinary.bad_rows(thought)}
        thoughts = np.diff(thought.offsets)
    good = np.ones(len(texts), dtype=bool)
    good[list(problems)] = False
    if recipe.max_thinking_tokens is not None:
        counts["thought_cut_at_budget"] = _count(good & (thoughts > recipe.max_thinking_tokens))
        thoughts = np.minimum(thoughts, recipe.max_thinking_tokens)
    room = recipe.window - frame - texts  # for the thought
    long = good & (thoughts > room)
    if recipe.long_documents == "truncate_thought":
        cut = long & (room >= 0) & (thoughts > 0)
        thoughts = np.where(cut, room, thoughts)
        counts["thought_cut_to_window"] = _count(cut)
        long &= ~cut
    elif recipe.long_documents == "drop":
        good &= ~long
        counts["dropped_long"] = _count(long)
        long[:] = False
    counts["longer_than_window"] = _count(long)
    kept = np.flatnonzero(good)
    starts = (0 if recipe.begin is None else 1) + (0 if recipe.style == "prefix" else texts[kept])
    added = len(recipe.before_thought) + len(recipe.after_thought)
    return ComposedBatch(
        ids=np.frombuffer(_join(recipe, text, thought, thoughts, kept, dtype), dtype),
        lengths=(texts[kept] + thoughts[kept] + frame).astype(np.int32),
        thinking_start=np.broadcast_to(starts, kept.shape).astype(np.int32),
        thinking_end=(starts + thoughts[kept] + added).astype(np.int32),
        kept=kept,
        bad=sorted(problems.items()),
        counts=+counts,
    )


def _count(rows: npt.NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(rows))


def _join(
    recipe: Recipe,
    text: Encoded,
    thought: Encoded | None,
    thoughts: npt.NDArray[np.int64],
    kept: npt.NDArray[np.int64],
    dtype: np.dtype[Any],
) -> bytes:
    """The sequences' bytes: slices of the encoder's ids with the control ids between them.

    One join of memory views: 0.5 us a document and part, where assigning numpy slices takes 1.5 us and
    masks of tokens 10 times that.
    """

    def constant(ids: Sequence[int]) -> bytes:
        return np.array(ids, dtype=dtype).tobytes()

    def slices(encoded: Encoded, lengths: npt.NDArray[np.int64]) -> list[memoryview]:
        view = memoryview(encoded.ids.astype(dtype)).cast("B") if len(encoded.ids) else memoryview(b"")
        starts = encoded.offsets[kept] * dtype.itemsize
        stops = starts + lengths[kept] * dtype.itemsize
        return [view[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]

    begin = () if recipe.begin is None else (recipe.begin,)
    texts = slices(text, np.diff(text.offsets))
    if thought is None:
        columns: tuple[list[memoryview], ...] = (texts,)
        frames = [constant(begin), constant([recipe.end])]
    elif recipe.style == "prefix":
        columns = (slices(thought, thoughts), texts)
        frames = [constant([*begin, *recipe.before_thought]), constant(recipe.after_thought)]
        frames.append(constant([recipe.end]))
    else:
        columns = (texts, slices(thought, thoughts))
        frames = [constant(begin), constant(recipe.before_thought)]
        frames.append(constant([*recipe.after_thought, recipe.end]))
    width = len(columns) + len(frames)
    pieces: list[memoryview | bytes] = [b""] * (width * len(kept))
    for place, frame in enumerate(frames):
        pieces[2 * place :: width] = [frame] * len(kept)
    for place, column in enumerate(columns):
        pieces[2 * place + 1 :: width] = column
    return b"".join(pieces)
