"""The quickstart's tokenizer: a byte-level BPE trained on the corpus and on the thoughts about it.

`<think>` and `</think>` are added tokens but not special ones, as in Qwen3's tokenizer. The chat template is
the document alone, then `<think>` and a newline: how `tpt pack` goes on before a thought (style think_tags).
"""

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

from corpus import read_documents
from pairs import PAIRS, pairs_by_hand, pairs_by_rules
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tpt_megatron.artifact import TEMPORARY, manifest_of_files, publish_folder, write_manifest
from tpt_megatron.errors import InputError

END_OF_TEXT = "<|endoftext|>"
THINK_TAGS = ("<think>", "</think>")
NUM_BYTES = 256
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<think>\n{% endif %}"
)


def training_texts(corpus: Path, pairs: Path) -> Iterator[str]:
    """All that the models will read or write, the held-out documents excepted."""
    by_hand, generator = pairs_by_hand(pairs), read_documents(corpus / "generator.jsonl")
    for document in [*generator, *read_documents(corpus / "train.jsonl")]:
        yield document.text
    yield from (pair.document.text for pair in by_hand)
    yield from (pair.thinking for pair in [*by_hand, *pairs_by_rules(generator)])


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of exactly `vocab_size` entries, the three control tokens counted.

    Raises InputError where the texts cannot fill so many entries, or so few cannot hold every byte.
    """
    least = NUM_BYTES + 1 + len(THINK_TAGS)
    if vocab_size < least:
        raise InputError(
            "--vocab-size", got=vocab_size, expected=f"at least {least}: bytes and control tokens"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(THINK_TAGS),
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in THINK_TAGS])
    if (got := tokenizer.get_vocab_size()) != vocab_size:
        raise InputError(
            "the texts are too few for --vocab-size", got=got, expected=vocab_size, fix="lower it"
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def write_tokenizer(corpus: Path, pairs: Path, output: Path, vocab_size: int) -> None:
    """Train on `corpus` and write the tokenizer's folder, with its manifest; `output` must not exist.

    Raises InputError where it does.
    """
    if output.exists():
        raise InputError(f"{output}: there is something already", fix="delete it, or name another folder")
    tokenizer = train_tokenizer(training_texts(corpus, pairs), vocab_size)
    temporary = output.with_name(f"{TEMPORARY}{output.name}")
    shutil.rmtree(temporary, ignore_errors=True)  # what an interrupted run left
    tokenizer.save_pretrained(str(temporary))
    write_manifest(
        temporary / "manifest.json", manifest_of_files(temporary, "tokenizer", {"vocab_size": vocab_size})
    )
    publish_folder(temporary, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, help="folder that corpus.py wrote")
    parser.add_argument("output", type=Path, help="folder for the tokenizer")
    parser.add_argument("--pairs", type=Path, default=PAIRS, help="pairs written by hand")
    parser.add_argument("--vocab-size", type=int, default=2048, help="entries in all")
    arguments = parser.parse_args()
    write_tokenizer(arguments.corpus, arguments.pairs, arguments.output, arguments.vocab_size)
    print(f"tokenizer: {arguments.vocab_size} entries -> {arguments.output}")


if __name__ == "__main__":
    main()
