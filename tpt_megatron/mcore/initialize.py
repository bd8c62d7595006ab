"""Initial weights: a pure function of (seed, global name), so every layout starts from the same model."""

import math
import zlib
from collections.abc import Iterator

import torch
from torch import Tensor

from tpt_megatron.config.schema import ModelConfig
from tpt_megatron.mcore.groups import Grid


def global_parameters(stage: torch.nn.Module, model: ModelConfig, grid: Grid) -> Iterator[tuple[str, Tensor]]:
    """Each parameter of this pipeline stage under its name in the whole model (layers counted from 0)."""
    offset = grid.pipeline_rank * (model.num_layers // grid.pipeline_size)
    for name, parameter in stage.named_parameters():
        parts = name.split(".")
        if parts[:2] == ["decoder", "layers"]:
            parts[2] = str(int(parts[2]) + offset)
        yield ".".join(parts), parameter


@torch.no_grad()
def initialize(stage: torch.nn.Module, model: ModelConfig, grid: Grid, seed: int) -> None:
    """Normal(0, init_std), the two projections that write into the residual divided by sqrt(2 layers) (as
    GPT-2 and Megatron-LM do; the paper is silent); norms 1, biases 0, rows of the vocabulary's padding 0.
    """
    for name, parameter in global_parameters(stage, model, grid):
        if parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        if name == "output_layer.weight" and model.tied_embeddings:
            name = "embedding.word_embeddings.weight"  # the last stage's copy of the tied weight
        parameter.copy_(_shard(_whole(name, parameter, model, grid, seed), name, parameter, grid))


def _split_axis(parameter: Tensor) -> int | None:
    split = getattr(parameter, "tensor_model_parallel", False)
    return int(parameter.partition_dim) if split else None  # type: ignore[attr-defined]


def _whole(name: str, parameter: Tensor, model: ModelConfig, grid: Grid, seed: int) -> Tensor:
    """The unsplit tensor, in float32 on the CPU: the same numbers on every machine and in every layout."""
    shape = list(parameter.shape)
    if (axis := _split_axis(parameter)) is not None:
        shape[axis] *= grid.tensor.size()
    generator = torch.Generator().manual_seed((seed << 32) + zlib.crc32(name.encode()))
    std = model.init_std
    if name.endswith(("linear_proj.weight", "linear_fc2.weight")):
        std /= math.sqrt(2 * model.num_layers)
    whole = torch.randn(shape, generator=generator) * std
    if name.startswith(("embedding.", "output_layer.")):
        whole[model.vocab_size :] = 0.0
    return whole


def _shard(whole: Tensor, name: str, parameter: Tensor, grid: Grid) -> Tensor:
    axis, size = _split_axis(parameter), grid.tensor.size()
    if axis is None or size == 1:
        return whole
    if "linear_fc1" in name:  # gate and up are each split over the ranks
        return torch.cat(
            [half.chunk(size, axis)[grid.tensor_rank] for half in whole.chunk(2, axis)], dim=axis
        )
    return whole.chunk(size, axis)[grid.tensor_rank]
