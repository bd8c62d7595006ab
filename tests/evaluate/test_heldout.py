"""Held-out losses against transformers' own loss, and against a count by hand."""

import json

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tpt_megatron.config.schema import EvaluateConfig
from tpt_megatron.data.writer import IndexedWriter
from tpt_megatron.errors import ConfigError, InputError
from tpt_megatron.evaluate.heldout import evaluate_heldout

END = 0


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, initializer_range=0.3, **shape)).save_pretrained(folder)
    return folder


def write(prefix, sequences, vocab_size=64):
    """sequences: (ids, thought's first token, the token after its last)."""
    writer = IndexedWriter(prefix, vocab_size)
    for ids, start, end in sequences:
        writer.add(np.array(ids), start, end, 0)
    tokenizer = {"name": "none", "fingerprint": "0", "vocab_size": vocab_size}
    writer.finish(
        {"tokenizer": tokenizer, "control": {"end": END}, "sources": ["x"], "style": "s", "counts": {}}
    )
    return str(prefix)


def test_losses_by_part(model, tmp_path):
    sequences = [([5, 6, 7, 8, 9, 10, END], 3, 6), ([11, 12, END], 2, 2)]
    config = EvaluateConfig(
        model=str(model), data=(write(tmp_path / "held", sequences),), output=str(tmp_path / "out")
    )
    seen = []
    result = evaluate_heldout(config, lambda done, total: seen.append((done, total)))["held"]
    network = LlamaForCausalLM.from_pretrained(model)
    losses = []
    for ids, _, _ in sequences:
        logits = network(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        losses.append([-logits[place, token].item() for place, token in enumerate(ids[1:])])
        mean = network(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
        assert np.mean(losses[-1]) == pytest.approx(mean, rel=1e-5)
    document, thought = losses[0][:2] + losses[1][:1], losses[0][2:5]
    assert result.document_loss == pytest.approx(np.mean(document), rel=1e-5)
    assert result.thinking_loss == pytest.approx(np.mean(thought), rel=1e-5)
    assert result.loss == pytest.approx(np.mean(losses[0] + losses[1]), rel=1e-5)
    assert (result.tokens, result.document_tokens, result.thinking_tokens) == (8, 3, 3)
    assert seen == [(1, 2), (2, 2)]
    assert json.loads((tmp_path / "out/evaluation.json").read_text())["datasets"]["held"]["tokens"] == 8


def test_no_thoughts_is_none_not_zero(model, tmp_path):
    config = EvaluateConfig(
        model=str(model),
        data=(write(tmp_path / "plain", [([5, 6, END], 2, 2)]),),
        output=str(tmp_path / "out"),
    )
    assert evaluate_heldout(config, lambda done, total: None)["plain"].thinking_loss is None


def test_mistakes_are_named(model, tmp_path):
    large = write(tmp_path / "large", [([5, 99, END], 2, 2)], vocab_size=100)
    with pytest.raises(ConfigError, match=r"evaluate\.model: missing"):
        evaluate_heldout(EvaluateConfig(), lambda done, total: None)
    with pytest.raises(InputError, match="larger vocabulary than the model, got 100, expected 64"):
        evaluate_heldout(
            EvaluateConfig(model=str(model), data=(large,), output=str(tmp_path / "o")), lambda d, t: None
        )
    with pytest.raises(InputError, match="cannot open"):
        evaluate_heldout(
            EvaluateConfig(model=str(tmp_path), data=(large,), output=str(tmp_path / "o")), lambda d, t: None
        )
