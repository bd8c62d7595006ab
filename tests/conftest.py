"""Fixtures that several rooms share; and Triton's interpreter, in which the tests run every kernel.

Triton reads TRITON_INTERPRET when it is imported, so it is set before anything does. It is not left in the
environment: processes that tests start run as a user's would, unless a test asks for the interpreter. On a
GPU machine too: kernels on the GPU itself are `make gpu`'s matter.
"""

import os
from pathlib import Path

import pytest

os.environ["TRITON_INTERPRET"] = "1"
import triton

triton.knobs.runtime.interpret = True
del os.environ["TRITON_INTERPRET"]

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "To think is to put a question, to look at it from each side, and to answer it in steps.",
    "Water boils at 100 degrees at sea level; on a mountain it boils at a lower temperature.",
    "A prime number has two divisors: one and itself. 2, 3, 5, 7, 11 and 13 are prime numbers.",
    "Let me see. First I read the document, then I ask what it says and what it leaves out.",
    "def add(left, right):\n    return left + right\n\nprint(add(1, 2))\n",
]


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a byte-level BPE with an end-of-sequence token and tags that are not special."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in ("<think>", "</think>")])
    fast.chat_template = (
        "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}<think>\n{% endif %}"
    )
    folder = tmp_path_factory.mktemp("tiny_tokenizer")
    fast.save_pretrained(folder)
    return folder
