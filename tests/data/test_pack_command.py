"""The command as users type it: the tool's flags, the presets of corpora, the last line."""

import json
import runpy
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tpt_megatron.cli import main
from tpt_megatron.config.schema import DataConfig
from tpt_megatron.data.dataset import Samples
from tpt_megatron.data.indexed import IndexedDataset
from tpt_megatron.tokenizer import load_facts

load_once = cache(load_facts)  # a process of its own reads a tokenizer: seconds
TOOL = Path(__file__).parents[2] / "tools" / "preprocess_thinking.py"


@pytest.fixture(autouse=True)
def _one_reading_of_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpt_megatron.data.pack.load_facts", load_once)


def tool(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [str(TOOL), *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(TOOL), run_name="__main__")
    return int(stopped.value.code or 0)


def test_the_tools_flags(
    tmp_path: Path,
    tiny_tokenizer: Path,
    make_trajectories: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_trajectories(tmp_path / "t", [[("a", "water", "boils"), ("b", "prime", "number")]], "web")
    base = [
        "--input",
        str(folder),
        "--tokenizer",
        str(tiny_tokenizer),
        "--output-prefix",
        str(tmp_path / "x"),
    ]
    assert tool(monkeypatch, *base, "--shard", "0/2", "--style", "plain") == 0
    assert "pack: shard 0/2, 2 rows" in capsys.readouterr().out
    assert tool(monkeypatch, *base, "--style", "plain", "data.max_thinking_tokens=1") == 2
    assert "data.max_thinking_tokens was None and is 1" in capsys.readouterr().err
    assert tool(monkeypatch, *base, "--style", "plain", "--workers", "2") == 0
    line = capsys.readouterr().out
    assert line.startswith("pack: 2 rows = 2 sequences, 0 quarantined; ")
    assert line.rstrip().endswith(str(tmp_path / "x"))
    assert tool(monkeypatch, *base[:-1], str(tmp_path / "z"), "data.style=prefix", "data.shard=0/1") == 0
    assert "shard 0/1" in capsys.readouterr().out
    assert not (tmp_path / "z.bin").exists()
    documents = tmp_path / "d.jsonl"
    documents.write_text('{"content": "water"}\n{"content": "water"}\n')
    base[1:2] = [str(documents)]
    base[-1] = str(tmp_path / "y")
    assert tool(monkeypatch, *base, "--style", "none", "--json-key", "content") == 0
    assert "2 rows = 1 sequences, 0 quarantined, 1 duplicate; " in capsys.readouterr().out


def settings(folder: Path, tokenizer: Path, pattern: str) -> list[str]:
    paths = json.dumps([str(folder / pattern)])
    return [f"corpus.paths={paths}", f"data.tokenizer={tokenizer}", f"data.output={folder / 'out'}"]


def test_web_preset(tmp_path: Path, tiny_tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {
        "text": ["water boils", "prime number", "water boils"], "id": ["<a>", "<b>", "<c>"],
        "dump": ["CC-1", "CC-2", "CC-2"], "score": [3.1, 4.2, 4.0], "int_score": [3, 4, 4],
    }  # fmt: skip
    pq.write_table(pa.table(rows), tmp_path / "000.parquet")
    arguments = ["pack", "fineweb-edu", *settings(tmp_path, tiny_tokenizer, "*.parquet")]
    assert main([*arguments, "--dry-run"]) == 0
    assert "from 1 files in 1 blocks" in capsys.readouterr().out
    assert main([*arguments, 'corpus.where=[["int_score", ">=", 4]]']) == 0
    lineage = pq.read_table(tmp_path / "out.lineage.parquet").to_pylist()
    assert [(row["id"], row["source"]) for row in lineage] == [("<b>", "fineweb-edu"), ("<c>", "fineweb-edu")]
    assert [json.loads(row["meta"]) for row in lineage] == [
        {"dump": "CC-2", "int_score": 4}, {"dump": "CC-2", "int_score": 4},
    ]  # fmt: skip
    assert "1 where" in capsys.readouterr().out


def test_conversations_preset(tmp_path: Path, tiny_tokenizer: Path) -> None:
    """From Mixture-of-Thoughts' columns to samples in which only answers carry loss."""
    tokenizer = chat_tokenizer(tmp_path / "tokenizer", tiny_tokenizer)
    turns = [
        {"role": "user", "content": "water?"},
        {"role": "assistant", "content": "<think>\nso\n</think>\nboils"},
    ]
    rows = {"messages": [turns, turns[:1]], "num_tokens": [9, 3], "source": ["math", "math"]}
    pq.write_table(pa.table(rows), tmp_path / "mot.parquet")
    arguments = ["pack", "mixture-of-thoughts", *settings(tmp_path, tokenizer, "mot.parquet")]
    assert main([*arguments, "data.sequence_length=64"]) == 0
    dataset = IndexedDataset(tmp_path / "out")
    assert dataset.num_sequences == 1
    quarantine = json.loads((tmp_path / "out.quarantine.jsonl").read_text())
    assert quarantine["file"] == str(tmp_path / "mot.parquet")
    assert "no assistant turn" in quarantine["reason"]
    facts = load_once(str(tokenizer))
    data = DataConfig(blend=((str(tmp_path / "out"), 1.0),), packing="best_fit", sequence_length=64)
    sample = Samples(data, 0, facts.vocab_size)[0]
    trained = np.flatnonzero(sample.labels != -100)
    answer = facts.decode(sample.labels[trained].tolist())
    assert answer == "<think>\nso\n</think>\nboils<|im_end|>"
    prompt = facts.decode(sample.tokens[: trained[0] + 1].tolist())
    assert prompt == "<|im_start|>user\nwater?<|im_end|>\n<|im_start|>assistant\n"


def chat_tokenizer(folder: Path, tiny_tokenizer: Path) -> Path:
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    tokenizer.add_tokens([AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>")])
    tokenizer.save_pretrained(folder)
    return folder
