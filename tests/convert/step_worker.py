"""Run by the tests of convert/: saves a step of a model with random weights, and its logits on given tokens.

step_worker.py CONFIG.json STEP_PARENT TOKENS.pt LOGITS.pt

A process of its own, because megatron-core on a CPU needs stand-ins that transformers must not see.
"""

import sys
from pathlib import Path

import torch

from tpt_megatron.config.load import resolved
from tpt_megatron.mcore import checkpoint
from tpt_megatron.mcore.batch import Batch
from tpt_megatron.mcore.checkpoint import TrainState
from tpt_megatron.mcore.engine import build_engine
from tpt_megatron.mcore.groups import close_grid, init_grid


def main() -> None:
    config_path, parent, tokens_path, logits_path = (Path(argument) for argument in sys.argv[1:])
    config = resolved(config_path)
    engine = build_engine(config, init_grid(config))
    with torch.no_grad():
        for parameter in engine.stage.parameters():  # norms too: weights of 1 would hide a wrong name
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    checkpoint.save(engine, parent, TrainState(step=1))
    tokens = torch.load(tokens_path)
    bounds = torch.tensor([0, len(tokens)], dtype=torch.int32)
    positions = torch.arange(len(tokens))
    batch = Batch(tokens, tokens, positions, bounds, len(tokens), torch.zeros(len(tokens), dtype=torch.bool))
    with torch.no_grad():
        torch.save(engine.stage.logits(batch), logits_path)
    close_grid()


if __name__ == "__main__":
    main()
