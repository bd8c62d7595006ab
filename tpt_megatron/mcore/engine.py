"""A built model with its optimizer, and one step of training over micro-batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from torch import Tensor

from tpt_megatron.config.schema import Config
from tpt_megatron.mcore.batch import Batch
from tpt_megatron.mcore.groups import Grid
from tpt_megatron.mcore.initialize import initialize
from tpt_megatron.mcore.model import Decoder
from tpt_megatron.mcore.ops import TokenLosses, model_ops
from tpt_megatron.mcore.optimizer import build_optimizer
from tpt_megatron.mcore.settings import transformer_config
from tpt_megatron.models.family import family_of


@dataclass(frozen=True)
class Tally:
    """Summed loss and counted tokens of a batch, over documents and over thoughts apart."""

    document_loss: float
    document_tokens: int
    thinking_loss: float
    thinking_tokens: int

    @property
    def loss(self) -> float:
        """Mean over all counted tokens, in nats."""
        tokens = self.document_tokens + self.thinking_tokens
        return (self.document_loss + self.thinking_loss) / max(tokens, 1)


@dataclass(frozen=True)
class StepResult:
    tally: Tally
    gradient_norm: float
    updated: bool  # False: the gradient was not finite and the step was left out


@dataclass(frozen=True)
class Engine:
    """What a training step needs on this rank."""

    config: Config
    grid: Grid
    settings: Any  # megatron-core's TransformerConfig
    stage: Decoder
    wrapped: Any  # the stage under megatron-core's DDP
    optimizer: MegatronOptimizer

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of one data rank in a step."""
        train = self.config.train
        return train.global_batch_size // (train.micro_batch_size * self.grid.data_size)


def build_stage(config: Config, grid: Grid) -> tuple[Decoder, Any]:
    """This rank's stage of the model with its initial weights, and megatron-core's settings for it."""
    family = family_of(config.model)
    settings = transformer_config(config, family)
    stage = Decoder(settings, config, family, grid, model_ops(config.kernels, grid.device))
    initialize(stage, config.model, grid, config.train.seed)
    return stage.to(grid.device), settings


def build_engine(config: Config, grid: Grid) -> Engine:
    stage, settings = build_stage(config, grid)
    inner = Float16Module(settings, stage) if config.train.precision == "bf16" else stage
    ddp = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
    wrapped = DistributedDataParallel(settings, ddp, inner)
    optimizer = build_optimizer([wrapped], config.optimizer, config.train.precision)
    settings.finalize_model_grads_func = finalize_model_grads
    settings.grad_scale_func = optimizer.scale_loss
    return Engine(config, grid, settings, stage, wrapped, optimizer)


def _loss_sums(result: TokenLosses, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The loss summed over counted tokens, their number, and the tally [4] float64 for the log."""
    counted = batch.labels >= 0
    rows = [counted & ~batch.thinking, counted & batch.thinking]
    wide = result.losses.double()
    # where, not wide[row]: a mask as an index reads its length on the host.
    tally = torch.stack([x for row in rows for x in (wide.where(row, 0).sum(), row.sum().double())])
    return result.total, counted.sum().int(), {"tally": tally}


def _run(engine: Engine, batches: Iterator[Batch], num_micro_batches: int, forward_only: bool) -> Tensor:
    """Forward (and backward) over the micro-batches of this data rank; the global tally [4] on every rank."""

    def forward_step(iterator: Iterator[Batch], model: Any) -> tuple[Tensor, Any]:
        batch = next(iterator).to(engine.grid.device)
        return model(batch), lambda result: _loss_sums(TokenLosses(*result), batch)

    train = engine.config.train
    results = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=batches,
        model=[engine.wrapped],
        num_microbatches=num_micro_batches,
        seq_length=train.micro_batch_size * engine.config.data.sequence_length,
        micro_batch_size=1,  # samples lie end to end in one row
        forward_only=forward_only,
    )
    tally = torch.zeros(4, dtype=torch.float64, device=engine.grid.device)
    if engine.grid.is_last_stage and engine.grid.tensor_rank == 0:
        tally = torch.stack([result["tally"] for result in results]).sum(dim=0)
    dist.all_reduce(tally)  # every other rank adds zeros
    return tally


def train_step(engine: Engine, batches: Iterator[Batch]) -> StepResult:
    """One optimizer step over this data rank's micro-batches of the global batch."""
    engine.wrapped.zero_grad_buffer()
    engine.optimizer.zero_grad()
    tally = _run(engine, batches, engine.num_micro_batches, forward_only=False)
    updated, gradient_norm, _ = engine.optimizer.step()
    return StepResult(_tally(tally), float(gradient_norm or 0.0), bool(updated))


def _tally(sums: Tensor) -> Tally:
    document_loss, document_tokens, thinking_loss, thinking_tokens = sums.tolist()
    return Tally(document_loss, int(document_tokens), thinking_loss, int(thinking_tokens))
