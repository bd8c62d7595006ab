"""Config: merging, overrides, one clear line for each mistake."""

import subprocess
import sys

import pytest

from tpt_megatron.config.load import dump, load, merge, parse_override, resolved
from tpt_megatron.errors import ConfigError, InputError, TptError


def test_files_and_overrides_merge_left_to_right(tmp_path):
    (tmp_path / "a.toml").write_text("[model]\nnum_layers = 2\nvocab_size = 256\n[train]\nseed = 1\n")
    (tmp_path / "b.toml").write_text("[model]\nnum_layers = 4\n")
    config = load([str(tmp_path / "a.toml"), str(tmp_path / "b.toml"), "train.seed=7"])
    assert (config.model.num_layers, config.model.vocab_size, config.train.seed) == (4, 256, 7)


def test_lists_are_replaced_not_joined():
    assert merge({"a": {"b": [1, 2]}}, {"a": {"b": [3]}}) == {"a": {"b": [3]}}


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("data.blend=[['x', 1.0]]", {"data": {"blend": [["x", 1.0]]}}),
        ("train.tokens=1e9", {"train": {"tokens": 1e9}}),
        ("data.output=runs/a b", {"data": {"output": "runs/a b"}}),
        ("thinking.prompt=paper", {"thinking": {"prompt": "paper"}}),
        ("parallel.sequence=true", {"parallel": {"sequence": True}}),
    ],
)
def test_overrides_are_toml_or_plain_text(argument, value):
    assert parse_override(argument) == value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.num_layer=3"], "model.num_layer: unknown key; did you mean 'num_layers'?"),
        (["modle.num_layers=3"], "modle: unknown key; did you mean 'model'?"),
        (["train.tokens=-1"], "train.tokens: input should be greater than 0, got -1"),
        (["train.tokens=nan"], "train.tokens: "),
        (
            ["parallel.tensor=3"],
            "model.num_attention_heads must be a multiple of parallel.tensor, got 32 and 3",
        ),
        (["parallel.pipeline=5"], "model.num_layers must be a multiple of parallel.pipeline, got 32 and 5"),
        (["parallel.sequence=true"], "parallel.sequence needs parallel.tensor > 1, got 1"),
        (
            ["model.num_key_value_heads=5"],
            "num_attention_heads must be a multiple of model.num_key_value_heads",
        ),
        (
            ["train.micro_batch_size=3"],
            "train.global_batch_size must be a multiple of train.micro_batch_size",
        ),
        (["quikstart"], "no preset 'quikstart'"),
        (["missing.toml"], "missing.toml: no such config file"),
    ],
)
def test_each_mistake_is_one_clear_line(arguments, message):
    with pytest.raises((ConfigError, InputError)) as caught:
        load(arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_saved_tree_reads_back(tmp_path):
    config = load(["model.num_layers=6", "data.blend=[['p', 0.5]]"])
    (tmp_path / "config.json").write_text(dump(config))
    assert resolved(tmp_path / "config.json") == config


def test_a_missing_or_foreign_saved_tree_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no resolved config"):
        resolved(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"model": {"layers": 3}}')
    with pytest.raises(InputError, match="another version"):
        resolved(tmp_path / "config.json")


def test_every_error_says_what_was_got_and_the_fix():
    error = TptError("a: wrong", got=1, expected=2, fix="set a=2")
    assert str(error) == "a: wrong, got 1, expected 2; set a=2"


@pytest.mark.parametrize(
    ("arguments", "code", "where", "text"),
    [
        (["config", "quickstart"], 0, "stdout", '"num_layers"'),
        (["config", "model.num_layer=3"], 2, "stderr", "did you mean 'num_layers'?"),
        (["config", "train.micro_batch_size=-1"], 2, "stderr", "greater than 0"),
        (["train", "parallel.tensor=3"], 2, "stderr", "multiple of parallel.tensor"),
        (["verify", "/nowhere"], 2, "stderr", "no manifest here"),
        (["plan"], 2, "stderr", "does not have this verb yet"),
        (["train", "train.tokens=1e6", "--dry-run"], 0, "stdout", "would run 1 steps"),
    ],
)
def test_the_command(arguments, code, where, text):
    done = subprocess.run(
        [sys.executable, "-m", "tpt_megatron", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert text in getattr(done, where)
    if code:
        assert len(done.stderr.splitlines()) == 1
