"""Texts to token ids, by the fastest library that gives exactly the reference's ids.

gigatoken and fastokens encode 30 to 70 times faster than `tokenizers`, and know fewer kinds of tokenizer;
one that they open may still be encoded otherwise. gigatoken 0.10 takes no notice of a BPE model's
`end_of_word_suffix`, normalizes to NFC by newer tables than the reference (Qwen; U+0D3C and its like), and
normalizes SentencePiece's nmt_nfkc otherwise. So none is believed before it has given the reference's ids on
a sample of the corpus and on strings made to tell encoders apart.
"""

import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tpt_megatron.errors import ConfigError, InputError
from tpt_megatron.tokenizer import TokenizerFacts

FAST = ("gigatoken", "fastokens")  # tried in this order
CHARACTERS_PER_CALL = 2**20  # of the reference, whose Python lists take 36 bytes a token
# What the fast libraries raise for a definition or text that they cannot take.
REFUSALS = (ValueError, RuntimeError)
HARD_TEXTS = (
    *("", " ", "  ", "\n", "\r\n", "\r", "\t", "\0", "a\0b", "\n\n\n   x", "   \n  \n", "\t\t x "),
    *("a  b   c    d", "x " * 50, " " * 1000, "1" * 1000, "\n" * 1000, "ab" * 1000, "!?" * 500),
    *("12345 1,234.5678 0x1F 3e-9", "\r\n\r\n line\r\nbreaks\n", "\x85\x0b\x0c\x1c\u2028\u2029\u00a0\u3000x"),
    *("I'M DON'T 'S 'll 've '\u017f we'RE \u2019s", "\u0130 \u0131 \u017f \u212a \xdf \u1e9e \u01c4 \ufb01"),
    *("½ ² ① Ⅷ ١٢٣ ४५ \U0001d7d8\U0001d7d9", "e\u0301" * 100, "\u0301" * 200, "각 \u1100\u1161\u11a8"),
    *("العربية \u202bעבר\u202c ١٢٣", "中文字符\uff0c。日本語のテスト한국어", "\ufeffabc", "\ufffd\ufffe"),
    *("\U0010ffff\ue000", "👨\u200d👩\u200d👧\u200d👦 👍🏽 🇩🇪 ☺\ufe0f", "x\u200dy\u200cz\u2060", "▁ ▁▁a ▁b"),
    *("Ġ Ċ ĠĠa", "<0x0A> <0x41>", "<s> </s> <unk> [SEP] [UNK] <|endoftext|>"),
    *"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
)  # fmt: skip


@dataclass(frozen=True)
class Encoded:
    """Texts in ids: those of text i are `ids[offsets[i]:offsets[i + 1]]`."""

    ids: npt.NDArray[np.uint32]  # [tokens]
    offsets: npt.NDArray[np.int64]  # [texts + 1]


class Encoder(Protocol):
    """Encodes plain text; no control id can come out."""

    name: str

    def encode(self, texts: Sequence[str]) -> Encoded: ...


class ReferenceEncoder:
    """The library that defines the ids: `tokenizers`, or `sentencepiece` for its models."""

    def __init__(self, facts: TokenizerFacts) -> None:
        self.name: str = facts.kind
        self._facts = facts

    def encode(self, texts: Sequence[str]) -> Encoded:
        parts: list[npt.NDArray[np.uint32]] = []
        start = characters = 0
        for stop, text in enumerate(texts, 1):
            characters += len(text)
            if characters >= CHARACTERS_PER_CALL or stop == len(texts):
                rows = self._facts.encode_plain(texts[start:stop])
                parts += (np.array(row, dtype=np.uint32) for row in rows)
                start, characters = stop, 0
        offsets = np.zeros(len(parts) + 1, dtype=np.int64)
        np.cumsum([len(part) for part in parts], out=offsets[1:])
        return Encoded(np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint32), offsets)


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """Text that a fast library cannot take stops packing; its neighbours' tokens are not worth a guess."""
    try:
        yield
    except REFUSALS as error:
        raise InputError(
            f"data.encoder={name} cannot encode a document: {str(error).splitlines()[0]}",
            fix="set data.encoder=huggingface",
        ) from error


class GigatokenEncoder:
    """On the caller's thread alone: packing is parallel over processes."""

    name = "gigatoken"

    def __init__(self, facts: TokenizerFacts) -> None:
        from gigatoken import Tokenizer

        sentencepiece = facts.kind == "sentencepiece"
        opened = Tokenizer.from_sentencepiece if sentencepiece else Tokenizer.from_json
        self._tokenizer = opened(facts.plain_definition)

    def encode(self, texts: Sequence[str]) -> Encoded:
        with _refusals(self.name):
            layout: Any = self._tokenizer.encode_batch(list(texts), parallel=False).layout
        offsets = np.asarray(layout.offsets.data).astype(np.int64)
        return Encoded(np.asarray(layout.content.data).astype(np.uint32, copy=False), offsets)


class FastokensEncoder:
    name = "fastokens"

    def __init__(self, facts: TokenizerFacts) -> None:
        from fastokens import Tokenizer  # type: ignore[import-untyped]

        if facts.kind == "sentencepiece":
            raise ValueError("it opens no SentencePiece model")
        self._tokenizer = Tokenizer.from_json_str(facts.plain_definition.decode())

    def encode(self, texts: Sequence[str]) -> Encoded:
        with _refusals(self.name):
            ids, offsets = self._tokenizer.encode_batch_flat(list(texts), False)
        return Encoded(np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.uint64).astype(np.int64))


def build_encoder(facts: TokenizerFacts, name: str) -> Encoder:
    """The encoder `name`, which `choose_encoder` gave; cheap, for each worker to call.

    Raises what the library raises for a tokenizer that it does not know, ModuleNotFoundError where it is not
    installed, and ConfigError for the reference of another kind of tokenizer.
    """
    if name == "gigatoken":
        return GigatokenEncoder(facts)
    if name == "fastokens":
        return FastokensEncoder(facts)
    if name != facts.kind:
        raise ConfigError(
            f"data.encoder={name} does not encode for {facts.name}", expected=f"auto, or {facts.kind}"
        )
    return ReferenceEncoder(facts)


def choose_encoder(facts: TokenizerFacts, name: str, sample: Sequence[str]) -> tuple[str, str | None]:
    """The encoder that `data.encoder` = `name` means for this tokenizer, and a warning or None.

    "auto" takes the first fast library that gives the reference's ids on `sample` (a MB of the corpus: 0.5 s
    of the reference's time) and on strings made to tell encoders apart, else the reference.
    Raises ConfigError for an encoder asked for by name that is not installed or gives other ids.
    """
    reference = build_encoder(facts, facts.kind)
    if name not in ("auto", *FAST):
        return build_encoder(facts, name).name, None
    texts = [*hard_texts(facts), *sample]
    expected = reference.encode(texts)
    problems: list[str] = []
    for candidate in FAST if name == "auto" else (name,):
        problem = _difference(facts, candidate, texts, expected)
        if problem is None:
            return candidate, "; ".join(problems) or None
        problems.append(problem)
    if name != "auto":
        raise ConfigError(f"data.encoder={name}: {problems[0]}", fix="set data.encoder=auto")
    return reference.name, "; ".join(
        [*problems, f"so {reference.name} encodes, which takes several times as long"]
    )


def hard_texts(facts: TokenizerFacts) -> list[str]:
    """Strings that tell encoders apart: characters of all classes, long runs, this tokenizer's controls."""
    characters = [chr(c) for c in range(0, sys.maxunicode, 257) if not 0xD800 <= c < 0xE000]
    places = [f"a{c}1 {c}{c} {c}b\n{c}." for c in characters]
    # Every byte that UTF-8 can hold: a byte-level vocabulary may lack one.
    every_byte = "".join(
        map(chr, [*range(0x800), *range(0x800, 0xD800, 0x400), *range(0x10000, 0x110000, 0x10000)])
    )
    # NFC by tables of other Unicode versions: `tokenizers` has those of 9.0, gigatoken newer ones.
    below = [chr(c) for c in range(0x300, 0x1F000) if not 0xD800 <= c < 0xE000]
    marks = [f"\u0f74{c}\u0301{c}\u09bc" for c in below if unicodedata.combining(c)]
    split = [unicodedata.normalize("NFD", c) for c in below if unicodedata.decomposition(c)]
    tokens = list(facts.controls)
    around = [pattern.join(tokens) for pattern in ("", " ", "x", "\n")]
    return [
        *HARD_TEXTS,
        *places,
        every_byte,
        *marks,
        " ".join(split),
        *tokens,
        *(f"x{token}y" for token in tokens),
        *around,
    ]


def _difference(facts: TokenizerFacts, name: str, texts: Sequence[str], expected: Encoded) -> str | None:
    """What keeps the encoder `name` from standing in for the reference; None: nothing."""
    if find_spec(name) is None:
        return f"{name} is not installed"
    try:
        got = build_encoder(facts, name).encode(texts)
    except (*REFUSALS, InputError) as error:
        return f"{name} does not take {facts.name}: {str(error).splitlines()[0]}"
    if np.array_equal(got.offsets, expected.offsets) and np.array_equal(got.ids, expected.ids):
        return None
    for text, *bounds in zip(
        texts, got.offsets, got.offsets[1:], expected.offsets, expected.offsets[1:], strict=False
    ):
        start, stop, expected_start, expected_stop = bounds
        if not np.array_equal(got.ids[start:stop], expected.ids[expected_start:expected_stop]):
            return f"{name} does not give the ids of {facts.name}, first for {text[:60]!r}"
    return f"{name} gives {len(got.offsets) - 1} texts of {facts.name} for {len(texts)}"
