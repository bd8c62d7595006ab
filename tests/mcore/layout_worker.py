"""Run under torchrun by test_layouts: trains a tiny model on fixed samples and prints one JSON line.

    layout_worker.py CONFIG.json STEPS [LOAD_STEP_FOLDER [SAVE_FOLDER]]
"""

import json
import sys
from pathlib import Path

import numpy as np

from tpt_megatron.config.load import resolved
from tpt_megatron.data.dataset import Sample
from tpt_megatron.mcore import checkpoint
from tpt_megatron.mcore.checkpoint import TrainState
from tpt_megatron.mcore.engine import build_engine, train_step
from tpt_megatron.mcore.groups import close_grid, init_grid
from tpt_megatron.train.feed import micro_batches


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


def main() -> None:
    config, steps = resolved(Path(sys.argv[1])), int(sys.argv[2])
    load, save = ([*sys.argv[3:], "", ""])[:2]
    grid = init_grid(config)
    engine = build_engine(config, grid)
    state = checkpoint.load(engine, Path(load)) if load else TrainState()
    samples = FixedSamples(config.data.sequence_length, config.model.vocab_size)
    losses, norms = [], []
    train = config.train
    for step in range(state.step, state.step + steps):
        first = step * train.global_batch_size
        result = train_step(
            engine,
            micro_batches(
                samples, first, train.global_batch_size, train.micro_batch_size, grid.data_rank, grid.data_size
            ),
        )
        losses.append(result.tally.loss)
        norms.append(result.gradient_norm)
    if save:
        checkpoint.save(engine, Path(save), TrainState(step=state.step + steps))
    if grid.rank == 0:
        print(json.dumps({"losses": losses, "norms": norms}), flush=True)
    close_grid()


if __name__ == "__main__":
    main()
