"""Conversations for supervised fine-tuning: the frame by a chat template, contents as untrusted text.

Loss is carried by what the template's generation marks surround: each assistant turn, its thought and its
end-of-turn token included, and nothing else. A sequence ends with the end of document, put there without
loss where the template does not end so. A conversation is never cut in its answers: under
data.long_documents=split one longer than the window stays whole (packing then cuts it, or best_fit gives it
windows of its own), `truncate_thought` shortens the last turn's thought, `drop` leaves it out.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError

from tpt_megatron.config.schema import DataConfig
from tpt_megatron.data.compose import (
    ComposedBatch,
    LongDocuments,
    OrdinaryIds,
    control_id,
    end_id,
    ordinary_ids,
)
from tpt_megatron.data.rows import Messages
from tpt_megatron.data.template import GENERATION, Template
from tpt_megatron.data.tokenize import Encoded, Encoder
from tpt_megatron.errors import ConfigError, InputError
from tpt_megatron.tokenizer import TokenizerFacts

Ids = npt.NDArray[np.uint32]
TEMPLATES = Path(__file__).parent / "templates"
# The control tokens that each of our templates is made of, which also tell it in "auto".
NEEDED: Mapping[str, tuple[str, ...]] = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a conversation, encoded apart from its neighbours."""

    text: str
    kind: Literal["frame", "content", "tag", "thought"]
    control: bool  # control tokens are recognised: in our own words only
    trained: bool
    turn: int | None  # the message that it is of; None: the frame


@dataclass(frozen=True)
class ChatTemplate:
    """How conversations become sequences."""

    template: Template
    end: int
    begin: int | None
    think_open: str
    think_close: str
    tags: tuple[int, int] | None  # their ids; None: the tokenizer has none, so they are text
    ordinary: OrdinaryIds
    window: int  # data.sequence_length
    max_thinking_tokens: int | None
    long_documents: LongDocuments

    @property
    def control(self) -> dict[str, int | None]:
        """The ids that are put in by id, by the name that a manifest gives them."""
        think_open, think_close = self.tags or (None, None)
        return {"end": self.end, "begin": self.begin, "think_open": think_open, "think_close": think_close}


def build_chat(facts: TokenizerFacts, config: DataConfig) -> ChatTemplate:
    """The template of `data.chat_template` in the ids of the tokenizer.

    "auto" is the tokenizer's own template if that has generation marks, else ours for its control tokens.
    Raises ConfigError, naming the key, where there is none or it cannot be used.
    """
    variables = {"bos_token": facts.bos_token or "", "eos_token": facts.eos_token or ""}
    template = Template("data.chat_template", _template_text(facts, config.chat_template), variables)
    template.check()
    tags = [facts.controls.get(tag) for tag in (config.think_open, config.think_close)]
    return ChatTemplate(
        template=template,
        end=end_id(config, facts),
        begin=control_id(facts, config.begin_token, "data.begin_token") if config.begin_token else None,
        think_open=config.think_open,
        think_close=config.think_close,
        tags=None if tags[0] is None or tags[1] is None else (tags[0], tags[1]),
        ordinary=ordinary_ids(facts, sorted(facts.control_ids() - facts.ordinary_ids)),
        window=config.sequence_length,
        max_thinking_tokens=config.max_thinking_tokens,
        long_documents=config.long_documents,
    )


def _template_text(facts: TokenizerFacts, name: str) -> str:
    if name == "auto":
        if facts.chat_template and GENERATION.search(facts.chat_template):
            return facts.chat_template
        found = [ours for ours, needed in NEEDED.items() if facts.controls.keys() >= set(needed)]
        if not found:
            raise ConfigError(
                f"data.chat_template: {facts.name} has no chat template with generation marks, "
                f"nor the control tokens of {' or '.join(NEEDED)}",
                fix="give the path of a template with {% generation %} marks",
            )
        name = found[0]
    if name in NEEDED:
        if missing := [token for token in NEEDED[name] if token not in facts.controls]:
            raise ConfigError(
                f"data.chat_template={name} is made of control tokens that {facts.name} lacks",
                got=f"no {', '.join(missing)}",
                fix="add them to the tokenizer, or give the path of another template",
            )
        return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"data.chat_template: cannot read a template ({type(error).__name__})",
            got=repr(name),
            expected=f"auto, {', '.join(NEEDED)}, or the path of a Jinja file",
        ) from error


def render(chat: ChatTemplate, messages: Messages) -> list[Part]:
    """A conversation in parts, in order.

    Raises jinja2.TemplateError for roles that the template refuses, and ValueError where it leaves out a
    message or nothing carries loss.
    """
    parts: list[Part] = []
    for piece in chat.template.pieces([message["role"] for message in messages]):
        if piece.message is None:
            parts.append(Part(piece.text, "frame", True, piece.trained, None))
        else:
            message = messages[piece.message]
            parts += _content(chat, message, piece.message, piece.trained)
    if not any(part.trained and part.turn is not None for part in parts):
        raise ValueError("no assistant turn, so nothing carries loss")
    return parts


def _content(chat: ChatTemplate, message: Mapping[str, Any], turn: int, trained: bool) -> list[Part]:
    """A message's text; of an assistant's, a thought that it begins with stands apart, between its tags."""
    text = str(message["content"])
    close = text.find(chat.think_close, len(chat.think_open))
    if message["role"] != "assistant" or close < 0 or not text.startswith(chat.think_open):
        return [Part(text, "content", False, trained, turn)]
    by_id = chat.tags is not None
    return [
        Part(chat.think_open, "tag", by_id, trained, turn),
        Part(text[len(chat.think_open) : close], "thought", False, trained, turn),
        Part(chat.think_close, "tag", by_id, trained, turn),
        Part(text[close + len(chat.think_close) :], "content", False, trained, turn),
    ]


def compose_chat(
    chat: ChatTemplate,
    conversations: Sequence[Messages],
    encoder: Encoder,
    facts: TokenizerFacts,
    dtype: np.dtype[Any],
) -> ComposedBatch:
    """The sequences of many conversations, as `dtype`, and which of their tokens carry loss.

    `thinking_start:thinking_end` is the thought of the last assistant turn with its tags, or empty.
    A conversation that the template refuses, or in which nothing carries loss, is `bad`.
    """
    problems: dict[int, str] = {}
    rendered: list[list[Part]] = []
    for row, messages in enumerate(conversations):
        try:
            rendered.append(render(chat, messages))
        except (TemplateError, ValueError) as error:
            problems[row] = str(error)
            rendered.append([])
    untrusted = [(row, part.text) for row, parts in enumerate(rendered) for part in parts if not part.control]
    encoded = encoder.encode([text for _, text in untrusted])
    for place, reason in chat.ordinary.bad_rows(encoded):
        problems.setdefault(untrusted[place][0], f"a message {reason}")
    sequences: list[_Sequence] = []
    kept: list[int] = []
    counts: Counter[str] = Counter()
    for row, (parts, ids) in enumerate(zip(rendered, _ids(rendered, encoded, facts), strict=True)):
        if row in problems:
            continue
        sequence = _sequence(chat, parts, ids)
        if not sequence.trained.any():
            problems[row] = "the assistant says nothing, so nothing carries loss"
            continue
        if chat.long_documents == "drop" and len(sequence.ids) > chat.window:
            counts["dropped_long"] += 1
            continue
        counts += sequence.counts
        sequences.append(sequence)
        kept.append(row)
    return ComposedBatch(
        ids=np.concatenate([np.zeros(0, dtype), *(s.ids.astype(dtype) for s in sequences)]),
        lengths=np.array([len(s.ids) for s in sequences], dtype=np.int32),
        thinking_start=np.array([s.thinking_start for s in sequences], dtype=np.int32),
        thinking_end=np.array([s.thinking_end for s in sequences], dtype=np.int32),
        kept=np.array(kept, dtype=np.int64),
        bad=sorted(problems.items()),
        counts=counts,
        trained=np.concatenate([np.zeros(0, bool), *(s.trained for s in sequences)]),
    )


def _ids(rendered: Sequence[list[Part]], encoded: Encoded, facts: TokenizerFacts) -> Iterator[list[Ids]]:
    """The ids of each part of each conversation; `encoded` holds those of the untrusted parts, in order."""
    frames: dict[str, Ids] = {}  # a few strings make every frame
    place = 0
    for parts in rendered:
        out = []
        for part in parts:
            if part.control:
                if part.text not in frames:
                    frames[part.text] = np.array(facts.encode_template(part.text), dtype=np.uint32)
                out.append(frames[part.text])
            else:
                out.append(encoded.ids[encoded.offsets[place] : encoded.offsets[place + 1]])
                place += 1
        yield out


@dataclass(frozen=True, slots=True)
class _Sequence:
    ids: Ids  # [tokens]
    trained: npt.NDArray[np.bool_]  # [tokens]
    thinking_start: int
    thinking_end: int
    counts: Counter[str]


def _sequence(chat: ChatTemplate, parts: Sequence[Part], ids: list[Ids]) -> _Sequence:
    """One conversation: thoughts cut as the config says, begin and end put on."""
    counts: Counter[str] = Counter()
    if chat.max_thinking_tokens is not None:
        for place, part in enumerate(parts):
            if part.kind == "thought" and len(ids[place]) > chat.max_thinking_tokens:
                ids[place] = ids[place][: chat.max_thinking_tokens]
                counts["thought_cut_at_budget"] += 1
    whole = np.concatenate([np.zeros(0, np.uint32), *ids])
    begin = [] if chat.begin is None or chat.begin in whole[:1] else [chat.begin]
    end = [] if chat.end in whole[-1:] else [chat.end]
    answer = max(part.turn for part in parts if part.turn is not None and part.trained)
    thinking = [i for i, p in enumerate(parts) if p.turn == answer and p.kind in ("tag", "thought")]
    excess = len(begin) + sum(map(len, ids)) + len(end) - chat.window
    if (
        excess > 0
        and chat.long_documents == "truncate_thought"
        and thinking
        and len(ids[thinking[1]]) >= excess
    ):
        ids[thinking[1]] = ids[thinking[1]][:-excess]
        counts["thought_cut_to_window"] += 1
    elif excess > 0:
        counts["longer_than_window"] += 1
    lengths = [len(begin), *map(len, ids), len(end)]
    places = thinking or [next(i for i, p in enumerate(parts) if p.turn == answer)]
    start = sum(lengths[: places[0] + 1])
    return _Sequence(
        ids=np.concatenate([np.array(begin, np.uint32), *ids, np.array(end, np.uint32)]),
        trained=np.repeat([False, *(part.trained for part in parts), False], lengths),
        thinking_start=start,
        thinking_end=start + sum(len(ids[place]) for place in thinking),
        counts=counts,
    )
