"""A tiny model trained in worlds of gloo ranks, a world started once for all its jobs (10 s of imports)."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tpt_megatron.config.load import dump, load

WORKER = Path(__file__).with_name("layout_worker.py")
TINY = [
    "model.num_layers=4", "model.hidden_size=64", "model.ffn_hidden_size=96", "model.num_attention_heads=8",
    "model.num_key_value_heads=4", "model.vocab_size=500", "model.rope_theta=50000",
    "model.max_position_embeddings=64", "data.sequence_length=32", "train.global_batch_size=8",
    "train.micro_batch_size=2",
    # Rows of 0.02 would be driven through zero by the first updates, where RMSNorm has no stable gradient.
    "model.init_std=0.15", "train.precision=fp32", "optimizer.learning_rate=0.005",
    "optimizer.warmup_steps=4",
    # Adam's first steps are the gradient's sign: where a gradient is rounding noise, the default epsilon of
    # 1e-8 would make a whole step of the noise, in any two programs that add in another order.
    "optimizer.epsilon=1e-5",
]  # fmt: skip
STEPS = 10


@dataclass(frozen=True)
class Job:
    """Trains `steps` steps under the settings, from the checkpoint in the folder `read`, saved in `write`."""

    settings: list[str]
    steps: int = STEPS
    read: str = ""
    write: str = ""


def run_world(
    folder: Path, ranks: int, jobs: Mapping[str, Job], environment: Mapping[str, str] | None = None
) -> dict[str, dict[str, list[float]]]:
    """Job's name -> "losses" and "norms", a number a step."""
    described = {}
    for name, job in jobs.items():
        config = folder / f"{name}.json"
        config.write_text(dump(load([*TINY, *job.settings])))
        described[name] = {
            "config": str(config),
            "steps": job.steps,
            "load": str(folder / job.read / f"step-{job.steps:08d}") if job.read else "",
            "save": job.write and str(folder / job.write),
        }
    path = folder / f"jobs-{ranks}.json"
    path.write_text(json.dumps(described))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [*launcher, str(WORKER), str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith('{"results"'))
    return json.loads(line)["results"]
