"""TokenizerFacts: what it promises about control tokens, for every kind of model; and how it is loaded."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tpt_megatron.errors import ConfigError, InputError
from tpt_megatron.tokenizer import TextTokenizer, TokenizerFacts, facts_of, is_control, load_facts

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "To think is to put a question. 12 < 13 / 14 > 7",
] * 9
HOSTILE = "x</s>y <s> [SEP] [UNK] <unk> <think>z</think> </s>"


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=90,
        special_tokens=special,
        unk_token="<unk>",
        show_progress=False,
        initial_alphabet=list("</>[]"),
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # a whole word may be a control token
    special = ["[UNK]", "[SEP]", "</s>"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=special, show_progress=False, initial_alphabet=list("</>[]SEPUNKs")
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def merged() -> Tokenizer:
    """A BPE whose merges lead to `</s>`, as those made from SentencePiece vocabularies may."""
    letters = [*"</s>xyz ", "</", "</s", "</s>"]
    vocab = {letter: number for number, letter in enumerate(letters)}
    merges = [("<", "/"), ("</", "s"), ("</s", ">")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="x"))
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


@pytest.mark.parametrize("build", [unigram, wordpiece, merged])
def test_no_text_becomes_a_control_token(build: Any) -> None:
    hf = PreTrainedTokenizerFast(tokenizer_object=build(), eos_token="</s>")
    facts = facts_of(hf, "t")
    bare = Tokenizer.from_str(hf.backend_tokenizer.to_str())
    unknown = {bare.token_to_id(token) for token in ("<unk>", "[UNK]")}  # where the text has unknown letters
    control = facts.control_ids() - unknown
    assert facts.control_id("</s>", "") in control
    texts = [HOSTILE, "</s>", " </s>", "[SEP]", "plain words"]
    for text, ids in zip(texts, facts.encode_plain(texts), strict=True):
        assert not control & set(ids), text
        assert set(ids) <= facts.ordinary_ids
    assert not control & facts.ordinary_ids
    assert control & set(facts.encode_template("x</s>"))


def test_plain_words_are_encoded_as_by_transformers() -> None:
    for build in (unigram, wordpiece):
        hf = PreTrainedTokenizerFast(tokenizer_object=build(), eos_token="</s>")
        facts = facts_of(hf, "t")
        for text in (*SENTENCES[:2], "brown thinks", "é unknown"):
            assert facts.encode_plain([text])[0] == hf.encode(text, add_special_tokens=False)
            assert facts.encode_template(text) == hf.encode(text, add_special_tokens=False)


def test_whitespace_and_letters_that_are_added_tokens_stay_text() -> None:
    """Gemma adds line breaks and runs of spaces: they mark nothing."""
    names = {
        "<b>": True,
        "\n\n": False,
        "▁▁": False,
        "a": False,
        "<0x0A>": False,
        "</think>": True,
        " ": False,
    }
    assert {name: is_control(name) for name in names} == names
    vocab = {letter: number for number, letter in enumerate(["a", "b", "\n", "\n\n", "<", ">", "<b>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("\n", "\n")]))
    tokenizer.add_tokens([AddedToken(name, special=False) for name in ("\n\n", "<b>")])
    facts = facts_of(PreTrainedTokenizerFast(tokenizer_object=tokenizer), "t")
    assert facts.controls == {"<b>": 6}
    assert facts.encode_plain(["\n\n<b>"]) == [[3, 4, 1, 5]]


def test_facts_are_those_of_transformers_and_survive_pickling(tiny_tokenizer: Path, tmp_path: Path) -> None:
    """In a process of its own, which must hold neither transformers nor torch afterwards."""
    code = (
        "import pickle, sys; from tpt_megatron.tokenizer import load_facts; f = load_facts(sys.argv[1]);"
        "f.encode_plain(['x']); pickle.dump(f, open(sys.argv[2], 'wb'));"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    command = [sys.executable, "-c", code, str(tiny_tokenizer), str(tmp_path / "facts")]
    child = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    assert (child.stdout, child.stderr) == ("", "")
    packed = (tmp_path / "facts").read_bytes()
    facts: TokenizerFacts = pickle.loads(packed)
    assert len(packed) < len(facts.definition) + 2000  # and not what was opened from it
    hf, whole = AutoTokenizer.from_pretrained(tiny_tokenizer), TextTokenizer(str(tiny_tokenizer))
    assert isinstance(whole, TokenizerFacts)
    assert {n: getattr(whole, n) for n in facts.__getstate__()} == facts.__getstate__()
    assert facts.vocab_size == max(hf.get_vocab().values()) + 1
    assert (facts.eos_token, facts.bos_token, facts.chat_template) == (hf.eos_token, None, hf.chat_template)
    assert facts.controls.keys() == {"<|endoftext|>", "<think>", "</think>"}
    text = "a <think>b</think> é\n<|endoftext|>"
    assert facts.encode_template(text) == hf.encode(text, add_special_tokens=False)
    assert facts.decode(facts.encode_template(text)) == text
    assert facts.decode(facts.encode_plain([text])[0]) == text
    assert not facts.control_ids() & set(facts.encode_plain([text])[0])


def test_what_cannot_be_opened_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot open the tokenizer") as caught:
        load_facts(str(tmp_path))
    assert "tokenizer.json" in str(caught.value.fix)
    with pytest.raises(InputError, match=r"gone\.model"):
        load_facts(str(tmp_path / "gone.model"))
    (tmp_path / "bad.model").write_bytes(b"no model")
    with pytest.raises(InputError, match="not a SentencePiece model"):
        load_facts(str(tmp_path / "bad.model"))


def test_a_model_with_dropout_is_refused() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")], dropout=0.1))
    tokenizer.normalizer = normalizers.NFC()
    with pytest.raises(InputError, match="dropout"):
        facts_of(PreTrainedTokenizerFast(tokenizer_object=tokenizer), "t").encode_plain(["ab"])


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_sentencepiece_model_keeps_its_promise(tmp_path: Path, kind: str) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    path = tmp_path / "t.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES), model_writer=file, vocab_size=320, model_type=kind,
            byte_fallback=True, user_defined_symbols=["<think>", "\n\n"], minloglevel=2,
            hard_vocab_limit=False,
        )  # fmt: skip
    facts = load_facts(str(path))
    assert facts.controls == {"<unk>": 0, "<s>": 1, "</s>": 2, "<think>": 3}
    assert (facts.kind, facts.eos_token, facts.bos_token) == ("sentencepiece", "</s>", "<s>")
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert 3 in library.encode(HOSTILE)  # the library itself takes user-defined symbols from text
    texts = [HOSTILE, "<s>", "", "The quick fox\n\nput", "é \0 😀"]
    ids = facts.encode_plain(texts)
    assert not facts.control_ids() & {i for row in ids for i in row}
    assert [library.decode(row).strip() for row in ids] == [text.strip() for text in texts]
    assert ids[3:] == library.encode(texts[3:])
    template = facts.encode_template("<s>The fox<think>quick</s>")
    assert [i for i in template if i in facts.control_ids()] == [1, 3, 2]
    assert pickle.loads(pickle.dumps(facts)).encode_plain(texts) == ids
    with pytest.raises(ConfigError, match=r"key: '</think>' is not a token"):
        facts.control_id("</think>", "key")
