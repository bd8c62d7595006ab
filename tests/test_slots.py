"""Slots: a fork's own function, named in the config, takes the seat; nothing of the package is edited."""

from pathlib import Path

import pytest
import torch

from tpt_megatron.config.load import load
from tpt_megatron.data.filters import apply_filters, open_filters
from tpt_megatron.data.rows import RowBatch
from tpt_megatron.data.source import open_corpus
from tpt_megatron.errors import ConfigError
from tpt_megatron.models.family import family_of
from tpt_megatron.slots import resolve
from tpt_megatron.thinking.prompt import load_prompt

EXAMPLES = Path(__file__).parents[1] / "examples" / "slots"


@pytest.fixture(autouse=True)
def examples_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def test_a_corpus_reader(tmp_path):
    (tmp_path / "notes.txt").write_text("first note\n\nsecond note\n")
    config = load(["corpus.reader=paragraphs:read", f'corpus.paths=["{tmp_path}/notes.txt"]'])
    assert [document.text for document in open_corpus(config.corpus)] == ["first note", "second note"]


def test_a_filter():
    config = load(['data.filter.names=["refusal", "no_code:keep"]']).data.filter
    rows = RowBatch(
        ["a", "b"], ["x", "y"], ["", ""], [{}, {}], thoughts=["Plain words.", "Run it:\n```\n1\n```"]
    )
    kept, dropped = apply_filters(rows, open_filters(config), config)
    assert (kept.ids, dropped) == (["a"], {"no_code:keep": 1})


def test_a_model_family():
    model = load(["model.family=qwen2_family:FAMILY", "model.num_layers=2"]).model
    family = family_of(model)
    assert family.hf_config(model)["model_type"] == "qwen2"
    names = {rule.ours for rule in family.rules_of(model)}
    assert "decoder.layers.1.self_attention.linear_qkv.bias" in names


def test_an_attention():
    attention = resolve("plain_attention:attention", {}, "kernels.attention")
    query = torch.randn(6, 2, 4)
    bounds = torch.tensor([0, 2, 6], dtype=torch.int32)
    from tpt_kernels import attention as ours

    torch.testing.assert_close(
        attention(query, query, query, cu_seqlens=bounds, max_seqlen=4),
        ours(query, query, query, cu_seqlens=bounds, max_seqlen=4),
    )


def test_a_prompt(tmp_path):
    (tmp_path / "mine.txt").write_text("Explain: {document}")
    assert (
        load_prompt(str(tmp_path / "mine.txt")).render("x {document}", "id", 0, 0) == "Explain: x {document}"
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "sdap",
            "unknown name, got 'sdap', expected one of auto, sdpa or 'package.module:attribute'; did you",
        ),
        ("no_such_module:f", "cannot import no_such_module:f"),
        ("json:no_such_function", "json has no attribute 'no_such_function'"),
    ],
)
def test_mistakes_are_named(value, message):
    with pytest.raises(ConfigError, match=r"kernels\.attention") as caught:
        resolve(value, {"auto": "json:loads", "sdpa": "json:loads"}, "kernels.attention")
    assert message in str(caught.value)
