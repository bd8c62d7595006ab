"""The distributed optimizer over our settings."""

import math
from typing import Any

from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer

from tpt_megatron.config.schema import OptimizerConfig as Settings
from tpt_megatron.mcore.settings import PRECISIONS


def build_optimizer(chunks: list[Any], settings: Settings, precision: str) -> MegatronOptimizer:
    """AdamW with its state sharded over the data axis; biases and norms are not decayed."""
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=settings.learning_rate,
            min_lr=settings.min_learning_rate,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.beta1,
            adam_beta2=settings.beta2,
            adam_eps=settings.epsilon,
            clip_grad=settings.clip_grad or math.inf,  # megatron-core measures the norm only where it clips
            bf16=precision == "bf16",
            params_dtype=PRECISIONS[precision],
            use_distributed_optimizer=True,
        ),
        chunks,
    )
    for part in optimizer.chained_optimizers:
        part.init_state_fn(part.optimizer, part.config)  # so that a step saves before its first update too
    return optimizer


def set_learning_rate(optimizer: MegatronOptimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
