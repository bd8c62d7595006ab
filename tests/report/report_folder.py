"""A small folder with every kind of artifact, written as the stages write them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tpt_megatron.artifact import Manifest, digest_file, manifest_of_files, write_manifest, write_text
from tpt_megatron.config.load import dump
from tpt_megatron.config.schema import Config, DataConfig, TrainConfig
from tpt_megatron.records import TRAJECTORY_SCHEMA

TOKENS_PER_STEP = 4 * 64
HOSTILE = "<script>alert('x')</script>&amp;<img src=http://evil.example/a.png>"
CONFIG = Config(
    data=DataConfig(sequence_length=64), train=TrainConfig(global_batch_size=4, tokens=TOKENS_PER_STEP * 100)
)


def metrics_lines(steps: int, thinking: bool = True) -> list[dict[str, Any]]:
    """Steps of uneven lengths, so that a mean of means is not the mean."""
    lines = []
    for step in range(1, steps + 1):
        documents, thoughts = 40 + 7 * (step % 5), 100 + step % 3 if thinking else 0
        document_loss = documents * (8.0 / step**0.1 + step % 2)
        thinking_loss = thoughts * (6.0 / step**0.2)
        lines.append(
            {
                "step": step,
                "consumed_samples": 4 * step,
                "consumed_tokens": TOKENS_PER_STEP * step,
                "document_loss": document_loss,
                "document_tokens": documents,
                "thinking_loss": thinking_loss,
                "thinking_tokens": thoughts,
                "loss": (document_loss + thinking_loss) / (documents + thoughts),
                "learning_rate": 1e-3 / step,
                "gradient_norm": 1.0 + (step == 7) * 50,
                "seconds": 9.0 if step == 1 else 0.5,  # the first compiles
            }
        )
    return lines


def write_run(
    folder: Path, lines: Sequence[Mapping[str, Any]], end: str = "", config: Config = CONFIG
) -> None:
    write_text(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines) + end)
    write_text(folder / "config.json", dump(config))


def lineage_lengths(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(document tokens, thinking tokens) of each row."""
    number = np.arange(rows)
    return (3 + number**2 % 900).astype(np.int32), (number * 37 % 2000).astype(np.int32)


def write_dataset(
    prefix: Path, rows: int = 200, sources: Sequence[str] = ("wiki",), tokenizer: str = "Qwen/x"
) -> None:
    prefix.parent.mkdir(parents=True, exist_ok=True)
    document, thinking = lineage_lengths(rows)
    lineage = prefix.with_name(f"{prefix.name}.lineage.parquet")
    columns = {
        "id": [str(n) for n in range(rows)],
        "sample": [0] * rows,
        "source": [sources[0]] * rows,
        "document_tokens": document,
        "thinking_tokens": thinking,
        "finish_reason": ["stop"] * rows,
    }
    pq.write_table(pa.table(columns), lineage)
    counts = {
        "sequences": rows,
        "tokens": int(document.sum() + thinking.sum()),
        "document_tokens": int(document.sum()),
        "thinking_tokens": int(thinking.sum()),
    }
    about = {
        "tokenizer": {"name": tokenizer, "fingerprint": "f", "vocab_size": 9},
        "style": "think_tags",
        "sources": list(sources),
        "counts": counts,
    }
    manifest = Manifest("dataset", {lineage.name: digest_file(lineage)}, about)
    write_manifest(prefix.with_name(f"{prefix.name}.manifest.json"), manifest)


def trajectory(number: int, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": f"doc-{number}", "sample": 0, "text": f"document {number}", "thinking": f"thought {number}",
        "finish_reason": "stop", "prompt": "paper", "generator": "g", "revision": "r", "seed": 1,
        "seed_honored": True, "document_tokens": 10 + number, "thinking_tokens": 100 * number,
        "truncated": False, "source": "wiki", "meta": "{}",
    }  # fmt: skip
    return {**row, **changes}


def write_trajectories(folder: Path, rows: Sequence[Mapping[str, Any]], rows_per_file: int = 3) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, start in enumerate(range(0, len(rows), rows_per_file)):
        table = pa.Table.from_pylist(list(rows[start : start + rows_per_file]), TRAJECTORY_SCHEMA)
        pq.write_table(table, folder / f"part-{part:05d}.parquet", compression="zstd")
    capped = sum(row["finish_reason"] == "length" for row in rows)
    about = {
        "counts": {
            "documents_in": len(rows) + 3,
            "out": len(rows),
            "quarantined": 2,
            "pending": 1,
        },
        "finish_reasons": {"stop": len(rows) - capped, "length": capped},
        "generator": "Qwen/Qwen3-8B",
        "revision": "abc123",
        "prompt": "paper@77aa",
    }
    write_manifest(folder / "manifest.json", manifest_of_files(folder, "trajectories", about))


def score(document: float | None, thinking: float | None, tokens: int = 30) -> dict[str, Any]:
    parts = [part for part in (document, thinking) if part is not None]
    return {
        "loss": sum(parts) / len(parts), "tokens": tokens,
        "document_loss": document, "document_tokens": tokens // 3 if document is not None else 0,
        "thinking_loss": thinking, "thinking_tokens": tokens - tokens // 3 if thinking is not None else 0,
    }  # fmt: skip


def write_evaluation(folder: Path, model: str, datasets: Mapping[str, Mapping[str, Any]]) -> None:
    write_text(folder / "evaluation.json", json.dumps({"model": model, "datasets": datasets}))
    write_manifest(folder / "manifest.json", manifest_of_files(folder, "evaluation", {"model": model}, None))


def write_everything(folder: Path) -> None:
    write_run(folder / "runs" / "tpt", metrics_lines(40))
    write_run(folder / "runs" / "vanilla", metrics_lines(20, thinking=False))
    write_dataset(folder / "data" / "train")
    rows = [trajectory(number) for number in range(1, 8)]
    rows[0] = trajectory(1, text=HOSTILE, thinking="long " * 900, finish_reason="length")
    write_trajectories(folder / "trajectories", rows)
    write_evaluation(
        folder / "scores" / "tpt",
        str(folder / "hf" / "tpt"),
        {"held": score(2.5, 1.25), "raw": score(3.0, None)},
    )
    write_evaluation(folder / "scores" / "vanilla", "vanilla-model", {"raw": score(3.5, None)})
