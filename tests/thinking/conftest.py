"""A generator small enough to run in every test: 2 layers, 32 wide, random weights."""

from pathlib import Path

import pytest

CORPUS = [
    "Water boils at 100 degrees. On a mountain it boils sooner. " * 3,
    "Let me think about primes: 2, 3, 5, 7.",
]
CHAT_TEMPLATE = """\
{% for m in messages %}{{ m['content'] }}
{% endfor %}{% if add_generation_prompt %}<think>
{% endif %}"""


@pytest.fixture(scope="session")
def tiny_generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Llama and its byte-level tokenizer; its chat template opens the thought."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(1)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in ("<think>", "</think>")])
    fast.chat_template = CHAT_TEMPLATE
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        eos_token_id=fast.eos_token_id,
        # Wide weights: the next token then hangs on the whole prompt, so a wrong cache shows at once.
        initializer_range=0.4,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny_generator")
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
