"""Encoders against the reference, kind of tokenizer by kind: equal on whole corpora, or refused by name.

Found on the way (gigatoken 0.10, fastokens 0.3.5): gigatoken ignores a BPE's `end_of_word_suffix`; its NFC
has newer Unicode tables than the reference's (7 of 60,000 fuzzed strings under Qwen 2's tokenizer, none of
GSM8K); it normalizes SentencePiece's nmt_nfkc otherwise. Whatever else it or fastokens opens is equal.
"""

import json
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tpt_megatron.data.tokenize import FAST, Encoded, build_encoder, choose_encoder, hard_texts
from tpt_megatron.errors import ConfigError, InputError
from tpt_megatron.tokenizer import TokenizerFacts, facts_of, load_facts

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"
needs_gsm8k = pytest.mark.skipif(not GSM8K.is_dir(), reason="no GSM8K beside the repository")
# All of ASCII: where a letter of "<0x0A>" is missing, fastokens spells it otherwise than the reference.
ASCII = "".join(map(chr, range(33, 127)))
SENTENCES = [
    "The quick brown fox's den, 12,345 feet up.\n",
    "def add(left, right):\n    return left\r\n",
    ASCII,
] * 5
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
RANGES = [(0, 0x7F), (0x80, 0x24F), (0x300, 0x36F), (0x370, 0x6FF), (0x900, 0xFFF), (0x1100, 0x11FF),
          (0x2000, 0x2BFF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF),
          (0xFE00, 0xFFEF), (0x1D400, 0x1D7FF), (0x1F300, 0x1FAFF), (0xE0100, 0xE01EF)]  # fmt: skip


@cache
def corpus(split: str) -> list[str]:
    rows = map(json.loads, (GSM8K / f"{split}.jsonl").open())
    return [text for row in rows for text in (row["question"], row["answer"])]


@cache
def fuzz(count: int) -> list[str]:
    """Strings of characters of one to three scripts each, with blanks, digits and marks between them."""
    draw = random.Random(0)
    common = [" ", "  ", "\n", "\r\n", "\t", "'s", "123", "a", "B", ".", "\u00a0", "\u200d"]

    def string() -> str:
        scripts = draw.choices(RANGES, k=draw.randint(1, 3))
        letters = (chr(draw.randint(*draw.choice(scripts))) for _ in range(draw.randint(0, 40)))
        return "".join(draw.choice(common) if draw.random() < 0.15 else letter for letter in letters)

    return [string() for _ in range(count)]


def byte_level(
    *pre: Any, normalizer: Any = None, suffix: str = "", alphabet: bool = True, **model: Any
) -> Any:
    def build() -> tuple[Tokenizer, Any]:
        ending = {"end_of_word_suffix": suffix} if suffix else {}
        tokenizer = Tokenizer(models.BPE(**ending, **model))  # type: ignore[arg-type]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(pre)) if len(pre) > 1 else pre[0]
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        return tokenizer, trainers.BpeTrainer(
            vocab_size=3000,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if alphabet else [],
            show_progress=False,
            **ending,
        )

    return build


def split(regex: str) -> list[Any]:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return [pre_tokenizers.Split(Regex(regex), "isolated"), byte_level]


def sentencepiece_like(normalizer: Any = None, pre: Any = None) -> Callable[[], tuple[Tokenizer, Any]]:
    """Llama 2's kind: words marked by `▁`, unknown characters in bytes."""

    def build() -> tuple[Tokenizer, Any]:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        marks = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        return tokenizer, trainers.BpeTrainer(vocab_size=3000, special_tokens=marks, show_progress=False)

    build.rest = {"normalizer": normalizer, "pre_tokenizer": pre}  # type: ignore[attr-defined]
    return build


def unigram() -> tuple[Tokenizer, Any]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=600, special_tokens=special, unk_token="<unk>", show_progress=False
    )


def wordpiece() -> tuple[Tokenizer, Any]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
    tokenizer.normalizer, tokenizer.pre_tokenizer = (
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    )
    special = ["[UNK]", "[CLS]", "[SEP]"]
    return tokenizer, trainers.WordPieceTrainer(vocab_size=2000, special_tokens=special, show_progress=False)


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
# The kind's builder, and which of the fast libraries may encode for it.
KINDS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "gpt2": (byte_level(GPT2), FAST),
    "qwen2": (byte_level(*split(LLAMA3.replace("{1,3}", "")), normalizer=normalizers.NFC()), ("fastokens",)),
    "llama3": (byte_level(*split(LLAMA3), ignore_merges=True), FAST),
    "starcoder": (byte_level(pre_tokenizers.Digits(individual_digits=True), GPT2), ("fastokens",)),
    "own regex": (byte_level(*split(r"\p{L}+|\p{N}+|[^\p{L}\p{N}]+")), ("fastokens",)),
    "llama2": (
        sentencepiece_like(normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])),
        FAST,
    ),
    "mistral": (
        sentencepiece_like(pre=pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
        ("gigatoken",),
    ),
    "word suffix": (byte_level(GPT2, suffix="</w>", unk_token="<|endoftext|>"), ("fastokens",)),
    "bytes missing": (byte_level(GPT2, alphabet=False), ()),
    "unigram": (unigram, ()),
    "wordpiece": (wordpiece, ()),
}


@cache
def facts_for(kind: str) -> TokenizerFacts:
    build = KINDS[kind][0]
    tokenizer, trainer = build()
    tokenizer.train_from_iterator(
        corpus("test")[: 150 if kind == "unigram" else 600] if GSM8K.is_dir() else SENTENCES, trainer
    )
    if rest := getattr(build, "rest", None):  # what trains well and what is shipped differ in these kinds
        body = json.loads(tokenizer.to_str()) | {"normalizer": None, "pre_tokenizer": None}
        shipped = Tokenizer.from_str(json.dumps(body))
        for name in [name for name, part in rest.items() if part is not None]:
            setattr(shipped, name, rest[name])
        tokenizer = shipped
    hf = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    return facts_of(hf, f"the {kind} tokenizer")


def rows(encoded: Encoded) -> list[list[int]]:
    assert (encoded.ids.dtype, encoded.offsets.dtype) == (np.uint32, np.int64)
    return [part.tolist() for part in np.split(encoded.ids, encoded.offsets[1:-1])]


def assert_equal(facts: TokenizerFacts, name: str, texts: Sequence[str]) -> None:
    got = rows(build_encoder(facts, name).encode(texts))
    assert len(got) == len(texts)
    wrong = [(t, a, b) for t, a, b in zip(texts, got, facts.encode_plain(texts), strict=True) if a != b]
    assert wrong == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_is_equal_or_refused(kind: str) -> None:
    """The tokenizer is trained on other text than most of what is encoded."""
    facts, right = facts_for(kind), KINDS[kind][1]
    chosen, warning = choose_encoder(facts, "auto", fuzz(20))
    texts = [*fuzz(1000), *(corpus("test")[::6] if GSM8K.is_dir() else [])]
    for name in FAST:
        pytest.importorskip(name)
        if name in right:
            assert chosen == name or choose_encoder(facts, name, []) == (name, None)
            assert_equal(facts, name, texts)
        else:
            with pytest.raises(ConfigError, match=f"data.encoder={name}.* the {kind} tokenizer"):
                choose_encoder(facts, name, [])
    assert chosen == next((name for name in FAST if name in right), "huggingface")
    assert (warning is None) == (chosen == FAST[0])
    if warning is not None:
        assert f"the {kind} tokenizer" in warning


@needs_gsm8k
@pytest.mark.long
@pytest.mark.parametrize("kind", [kind for kind, (_, right) in KINDS.items() if right])
def test_whole_corpora_are_equal(kind: str) -> None:
    for name in KINDS[kind][1]:
        pytest.importorskip(name)
        assert_equal(facts_for(kind), name, [*corpus("train"), *corpus("test"), *fuzz(60000)])


def test_the_difference_is_shown() -> None:
    pytest.importorskip("gigatoken")
    with pytest.raises(ConfigError, match=r"gigatoken does not give the ids of .*, first for ' '") as caught:
        choose_encoder(facts_for("word suffix"), "gigatoken", [])
    assert caught.value.fix == "set data.encoder=auto"


@pytest.mark.parametrize("where", ["sample", "control", "length"])
def test_one_wrong_token_is_enough(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """An encoder that errs in one text only: of the sample, or about a control token, or at the very end."""
    facts = facts_for("gpt2")
    sample = ["Good text.", "Text that it gets wrong."]
    target = {"sample": sample[1], "control": "x<|endoftext|>y", "length": sample[1]}[where]

    class Liar:
        name = "fastokens"

        def __init__(self, facts: TokenizerFacts) -> None:
            self._right = build_encoder(facts, "huggingface")

        def encode(self, texts: Sequence[str]) -> Encoded:
            right = self._right.encode(texts)
            place = list(texts).index(target)
            if where == "length":
                return Encoded(right.ids, right.offsets[:-1])
            ids = right.ids.copy()
            ids[right.offsets[place + 1] - 1] += 1
            return Encoded(ids, right.offsets)

    monkeypatch.setattr("tpt_megatron.data.tokenize.FastokensEncoder", Liar)
    monkeypatch.setattr("tpt_megatron.data.tokenize.GigatokenEncoder", Liar)
    monkeypatch.setattr("tpt_megatron.data.tokenize.find_spec", lambda name: name)
    chosen, warning = choose_encoder(facts, "auto", sample)
    assert chosen == "huggingface"
    assert warning is not None
    for part in ("gigatoken", "fastokens", facts.name):
        assert part in warning
    assert (repr(target) in warning) == (where != "length")
    with pytest.raises(ConfigError, match=r"data\.encoder=fastokens"):
        choose_encoder(facts, "fastokens", sample)


def test_what_is_not_installed_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = facts_for("gpt2")
    monkeypatch.setattr("tpt_megatron.data.tokenize.find_spec", lambda name: None)
    chosen, warning = choose_encoder(facts, "auto", [])
    assert chosen == "huggingface"
    assert warning is not None
    assert "gigatoken is not installed; fastokens is not installed" in warning
    with pytest.raises(ConfigError, match=r"data\.encoder=gigatoken: gigatoken is not installed"):
        choose_encoder(facts, "gigatoken", [])
    assert choose_encoder(facts, "huggingface", []) == ("huggingface", None)
    with pytest.raises(ConfigError, match=r"data\.encoder=sentencepiece"):
        choose_encoder(facts, "sentencepiece", [])


def test_text_that_a_fast_library_cannot_take_stops_packing() -> None:
    pytest.importorskip("fastokens")
    encoder = build_encoder(facts_for("bytes missing"), "fastokens")
    assert len(encoder.encode(["the"]).ids)
    with pytest.raises(InputError, match=r"data\.encoder=fastokens cannot encode") as caught:
        encoder.encode(["the", "\x00\x01"])
    assert caught.value.fix == "set data.encoder=huggingface"


@pytest.mark.parametrize("name", ["huggingface", *FAST])
@pytest.mark.parametrize("texts", [[], [""], ["", "a", ""]])
def test_nothing_is_encoded_to_nothing(name: str, texts: list[str]) -> None:
    if name in FAST:
        pytest.importorskip(name)
    encoded = build_encoder(facts_for("gpt2"), name).encode(texts)
    assert encoded.offsets.tolist() == [0, *np.cumsum([len(text) for text in texts])]
    assert len(encoded.ids) == encoded.offsets[-1]


def test_the_reference_encodes_in_calls_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = facts_for("gpt2")
    whole = build_encoder(facts, "huggingface").encode(fuzz(100))
    monkeypatch.setattr("tpt_megatron.data.tokenize.CHARACTERS_PER_CALL", 50)
    pieces = build_encoder(facts, "huggingface").encode(fuzz(100))
    assert rows(pieces) == rows(whole) == facts.encode_plain(fuzz(100))


@pytest.mark.parametrize("normalization", ["identity", "nmt_nfkc"])
def test_sentencepiece_models(tmp_path: Path, normalization: str) -> None:
    """gigatoken reads Llama 2's kind, once control pieces are out of its reach; it normalizes otherwise."""
    identity = normalization == "identity"
    library = pytest.importorskip("sentencepiece")
    pytest.importorskip("gigatoken")
    with (tmp_path / "t.model").open("wb") as file:
        library.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus("test")[:600] if GSM8K.is_dir() else SENTENCES), model_writer=file,
            vocab_size=1000, hard_vocab_limit=False, model_type="bpe", byte_fallback=True,
            user_defined_symbols=["<think>"], normalization_rule_name=normalization, minloglevel=2,
            remove_extra_whitespaces=not identity,
        )  # fmt: skip
    facts = load_facts(str(tmp_path / "t.model"))
    chosen, warning = choose_encoder(facts, "auto", [])
    assert chosen == ("gigatoken" if identity else "sentencepiece")
    assert (warning is None) == identity
    texts = [*hard_texts(facts), *fuzz(500), *(corpus("test")[:500] if GSM8K.is_dir() else [])]
    assert_equal(facts, chosen, texts)
    with pytest.raises(ConfigError, match="huggingface"):
        choose_encoder(facts, "huggingface", [])
