"""The process groups of a run: the one room that reads torchrun's environment."""

import os
import warnings
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed import ProcessGroup

from tpt_megatron.config.layout import data_parallel_size
from tpt_megatron.config.schema import Config
from tpt_megatron.mcore import host


@dataclass(frozen=True)
class Grid:
    """Where this rank stands on the tensor x pipeline x data grid, and its groups."""

    rank: int
    world_size: int
    device: torch.device
    tensor: ProcessGroup
    tensor_rank: int
    pipeline_rank: int
    pipeline_size: int
    data: ProcessGroup
    data_rank: int
    data_size: int

    @property
    def is_first_stage(self) -> bool:
        return self.pipeline_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pipeline_rank == self.pipeline_size - 1


def init_grid(config: Config) -> Grid:
    """Start torch.distributed (under torchrun, or alone as one rank) and megatron-core's groups.

    Raises ConfigError where the grid does not fit the world, before any communication.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    data_parallel_size(config, world_size)
    # megatron-core warns on import of each optional package that is not here; nothing of ours needs them.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.")
    host.install()
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    _init_distributed(device)

    from megatron.core import parallel_state, tensor_parallel

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=config.parallel.tensor,
        pipeline_model_parallel_size=config.parallel.pipeline,
    )
    tensor_parallel.model_parallel_cuda_manual_seed(config.train.seed)
    return Grid(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        device=device,
        tensor=parallel_state.get_tensor_model_parallel_group(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pipeline_size=config.parallel.pipeline,
        data=parallel_state.get_data_parallel_group(),
        data_rank=parallel_state.get_data_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
    )


def _init_distributed(device: torch.device) -> None:
    if dist.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:  # one rank, no launcher: no port is opened
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)


def close_grid() -> None:
    """Leave the groups; every rank calls it at the end of a run."""
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
