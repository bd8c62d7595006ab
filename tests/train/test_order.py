"""A run goes on with the samples that it began with, or says what is another."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tpt_megatron.config.load import load
from tpt_megatron.data.dataset import Samples
from tpt_megatron.data.writer import IndexedWriter
from tpt_megatron.errors import ConfigError
from tpt_megatron.train.order import describe_order, keep_order


def make_dataset(prefix: Path, first: int) -> Path:
    about = {"tokenizer": {"name": "t", "fingerprint": "f", "vocab_size": 600}}
    with IndexedWriter(prefix, 600) as writer:
        writer.add([first, *range(1, 40)], 0, 0, 0)
        writer.finish(about)
    return prefix


def facts_of(prefix: Path, *settings: str) -> dict[str, Any]:
    blend = f"data.blend={json.dumps([[str(prefix), 1.0]])}"
    config = load(
        [blend, "data.sequence_length=8", "train.tokens=640", "train.global_batch_size=4", *settings]
    )
    return describe_order(Samples(config.data, config.train.seed, 600), config)


def test_the_same_samples_go_on(tmp_path: Path) -> None:
    prefix, path = make_dataset(tmp_path / "x", 1), tmp_path / "run" / "data.json"
    facts = facts_of(prefix)
    assert facts["datasets"][0]["epochs_of_this_run"] == 20.0  # 80 samples of 4 windows
    keep_order(path, facts, 0, 0)
    (tmp_path / "moved").mkdir()
    for file in tmp_path.glob("x.*"):
        shutil.copy(file, tmp_path / "moved" / file.name)
    longer = facts_of(tmp_path / "moved" / "x", "train.tokens=1280")
    keep_order(path, longer, 3, 0)
    assert json.loads(path.read_text()) == longer
    keep_order(tmp_path / "other" / "data.json", facts, 3, 1)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("settings", "first", "named"),
    [
        (["train.seed=1"], 1, "seed, got 1, expected 0"),
        (["data.sequence_length=4"], 1, "sequence_length, got 4, expected 8"),
        (["data.document_mask=true"], 1, "document_mask"),
        ([], 2, "datasets"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_other_samples_are_refused(
    tmp_path: Path, settings: list[str], first: int, named: str, rank: int
) -> None:
    path = tmp_path / "run" / "data.json"
    keep_order(path, facts_of(make_dataset(tmp_path / "x", 1)), 0, 0)
    changed = facts_of(make_dataset(tmp_path / "y", first), *settings)
    with pytest.raises(ConfigError, match=f"3 steps were trained on other samples: {named}"):
        keep_order(path, changed, 3, rank)
    keep_order(path, changed, 0, 0)
    assert json.loads(path.read_text()) == changed
