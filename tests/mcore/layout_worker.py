"""Run under torchrun by test_layouts: trains tiny models on fixed samples and prints one JSON line.

layout_worker.py JOBS.json    name -> {"config": path, "steps": n, "load": step folder, "save": folder}
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch.distributed as dist
from megatron.core import parallel_state
from tpt_kernels.testing import install_interpreter

from tpt_megatron.config.load import resolved
from tpt_megatron.data.sample import Sample
from tpt_megatron.mcore import checkpoint
from tpt_megatron.mcore.checkpoint import TrainState
from tpt_megatron.mcore.engine import build_engine, train_step
from tpt_megatron.mcore.groups import close_grid, init_grid
from tpt_megatron.mcore.optimizer import set_learning_rate
from tpt_megatron.train.feed import micro_batches
from tpt_megatron.train.schedule import learning_rate

STEPS = 10


class FixedSamples:
    """Samples of a skewed token distribution, each cut into two documents at a place of its own."""

    def __init__(self, length: int, vocab_size: int) -> None:
        self.length, self.vocab_size = length, vocab_size

    def __getitem__(self, number: int) -> Sample:
        random = np.random.default_rng(number)
        row = (self.vocab_size * random.random(self.length + 1) ** 8).astype(np.int64)
        cut = int(random.integers(1, self.length))
        labels = row[1:].copy()
        labels[cut - 1] = -100
        positions = np.concatenate([np.arange(cut), np.arange(self.length - cut)])
        bounds = np.array([0, cut, self.length], np.int32)
        return Sample(row[:-1], labels, positions, bounds, np.arange(self.length) >= cut)

    def batch(self, numbers: Sequence[int]) -> SimpleNamespace:
        """What training reads of a SampleBatch."""
        rows = [self[number] for number in numbers]
        bounds = [row.cu_seqlens[:-1] + place * self.length for place, row in enumerate(rows)]
        cu_seqlens = np.concatenate([*bounds, [len(rows) * self.length]]).astype(np.int32)
        columns = {
            name: np.stack([getattr(row, name) for row in rows])
            for name in ("tokens", "labels", "positions", "thinking")
        }
        return SimpleNamespace(**columns, cu_seqlens=cu_seqlens, max_seqlen=int(np.diff(cu_seqlens).max()))


def run(job: dict) -> dict[str, list[float]]:
    config, steps = resolved(Path(job["config"])), job["steps"]
    grid = init_grid(config)
    engine = build_engine(config, grid)
    state = checkpoint.load(engine, Path(job["load"])) if job["load"] else TrainState()
    samples = FixedSamples(config.data.sequence_length, config.model.vocab_size)
    losses, norms = [], []
    train = config.train
    for step in range(state.step, state.step + steps):
        first = step * train.global_batch_size
        feed = micro_batches(
            samples, first, train.global_batch_size, train.micro_batch_size, grid.data_rank, grid.data_size
        )
        set_learning_rate(engine.optimizer, learning_rate(step, STEPS, config.optimizer))
        result = train_step(engine, feed)
        losses.append(result.tally.loss)
        norms.append(result.gradient_norm)
    if job["save"]:
        checkpoint.save(engine, Path(job["save"]), TrainState(step=state.step + steps))
    return {"losses": losses, "norms": norms}


def main() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        install_interpreter()
    jobs = json.loads(Path(sys.argv[1]).read_text())
    results = {}
    for name, job in jobs.items():
        results[name] = run(job)
        parallel_state.destroy_model_parallel()  # the next job has groups of its own in the same world
    if dist.get_rank() == 0:
        print(json.dumps({"results": results}), flush=True)
    close_grid()


if __name__ == "__main__":
    main()
