"""megatron-core's own fused cross-entropy, as a peer in the kernels' benchmark."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore
from torch.distributed import ProcessGroup


def one_rank_group(device: torch.device) -> ProcessGroup:
    """The whole world, which must be this rank; torch.distributed is started when it was not.

    ValueError in a world of several ranks: the benchmark gives each rank's shapes to one process.
    """
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    if dist.get_world_size() != 1:
        raise ValueError(f"world size: got {dist.get_world_size()}, expected 1; run without torchrun")
    group = dist.group.WORLD
    assert group is not None
    return group


def fused_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Loss of each row: logits [tokens, vocab], target [tokens] -> [tokens] float32.

    Its gradient is bf16 whatever the logits' dtype, which autograd then casts.
    """
    from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy

    group = one_rank_group(logits.device)
    loss: Tensor = fused_vocab_parallel_cross_entropy(logits[:, None], target[:, None], group)
    return loss[:, 0]  # megatron-core's rows are [sequence, batch]
