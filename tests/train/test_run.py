"""`tpt train` as a process: it goes on where it stopped, bit for bit, and passes over a damaged step."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tpt_megatron.config.schema import OptimizerConfig
from tpt_megatron.data.writer import IndexedWriter
from tpt_megatron.train.log import MetricsLog, read_metrics
from tpt_megatron.train.schedule import learning_rate

SETTINGS = [
    "model.num_layers=2", "model.hidden_size=32", "model.ffn_hidden_size=64", "model.num_attention_heads=4",
    "model.num_key_value_heads=2", "model.vocab_size=256", "data.sequence_length=16", "train.precision=fp32",
    "train.global_batch_size=4", "optimizer.warmup_steps=2", "checkpoint.every_steps=2",
]  # fmt: skip
TOKENS_A_STEP = 4 * 16


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("data") / "tiny"
    writer, random = IndexedWriter(prefix, 256), np.random.default_rng(0)
    for _ in range(40):
        length = int(random.integers(5, 40))
        writer.add(random.integers(0, 256, length), length // 2, length - 1, 0)
    tokenizer = {"name": "none", "fingerprint": "0", "vocab_size": 256}
    writer.finish(
        {"tokenizer": tokenizer, "style": "think_tags", "sources": ["x"], "control": {}, "counts": {}}
    )
    return prefix


def run(dataset: Path, run_dir: Path, steps: int, *more: str) -> tuple[list[float], str]:
    """The losses in the log and what the command printed."""
    arguments = [
        *SETTINGS, f'data.blend=[["{dataset}", 1.0]]', f"train.run_dir={run_dir}",
        f"train.tokens={steps * TOKENS_A_STEP}", *more,
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tpt_megatron", "train", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [line["loss"] for line in read_metrics(run_dir / "metrics.jsonl")], done.stdout


def test_goes_on_bit_for_bit_also_past_a_damaged_step(dataset, tmp_path):
    straight, _ = run(dataset, tmp_path / "straight", 6)
    assert len(straight) == 6
    first, _ = run(dataset, tmp_path / "resumed", 4)
    assert first == straight[:4]
    step = tmp_path / "resumed/checkpoints/step-00000004"
    shard = max(step.glob("*.distcp"), key=lambda path: path.stat().st_size)
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    resumed, output = run(dataset, tmp_path / "resumed", 6)
    assert "checkpoint passed over" in output
    assert str(shard) in output
    assert resumed == straight


@pytest.mark.parametrize(
    ("step", "schedule", "want"),
    [
        (0, "constant", 0.1), (9, "constant", 1.0), (10, "constant", 1.0), (99, "constant", 1.0),
        (4, "cosine", 0.5), (10, "cosine", 1.0), (60, "cosine", 0.6),
        (110, "cosine", 0.2), (500, "cosine", 0.2),
    ],
)  # fmt: skip
def test_learning_rate(step, schedule, want):
    settings = OptimizerConfig(learning_rate=1.0, min_learning_rate=0.2, warmup_steps=10, schedule=schedule)
    assert learning_rate(step, 110, settings) == pytest.approx(want)


def test_the_log_forgets_torn_lines_and_later_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": n}) + "\n" for n in (1, 2, 3)) + '{"step": 4, "lo')
    log = MetricsLog(path, step=2)
    log.write({"step": 3, "again": True})
    log.close()
    assert read_metrics(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]
