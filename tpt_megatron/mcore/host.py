"""Assigns into foreign modules (the one place that may): megatron-core without CUDA, and without Apex or TE.

On a machine without a GPU the names of torch.cuda that megatron-core calls get a stand-in on the CPU, so
that its own layers, DDP, distributed optimizer, schedules and checkpoints run over gloo. On every machine
without Transformer Engine and Apex, megatron-core's Adam becomes ours, which keeps its step per group.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


def install() -> None:
    """Put the stand-ins in place; once per process, before any model is built. Idempotent."""
    cuda: Any = torch.cuda
    if not cuda.is_available() and cuda.current_device is not _current_device:
        _install_cpu_for_cuda()
    _install_adam()


def _install_adam() -> None:
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer

    from tpt_megatron.mcore.adam import Adam

    if not optimizer.USING_PYTORCH_OPTIMIZER:
        return
    # The branch that megatron-core takes for Apex's FusedAdam, which ours stands for: with torch's AdamW
    # a resharded optimizer state does not load (KeyError 'step').
    optimizer.Adam = distrib_optimizer.Adam = Adam
    optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.HAVE_APEX_OR_TE = distrib_optimizer.USING_APEX_OPTIMIZER = True


def _current_device() -> torch.device:
    return CPU


def _nothing(*args: object, **kwargs: object) -> None:
    return None


class _Stream:
    """A stream and an event on a device that has one stream: all is in order already."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    wait_stream = wait_event = synchronize = record = wait = _nothing

    def record_event(self, *args: object) -> "_Stream":
        return self

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: object) -> float:
        return 0.0


class _CudaMeansCpu(TorchFunctionMode):
    """Turns the device "cuda" into "cpu" in every call of torch."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if _is_cuda(named.get("device")):
            named["device"] = CPU
        if func is torch.Tensor.type and len(args) == 1:
            # The distributed optimizer sorts parameters by comparing with "torch.cuda.FloatTensor".
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if func is torch.Tensor.to:
            args = tuple(CPU if _is_cuda(argument) else argument for argument in args)
        return func(*args, **named)


def _is_cuda(device: object) -> bool:
    return (isinstance(device, str) and device.startswith("cuda")) or (
        isinstance(device, torch.device) and device.type == "cuda"
    )


def _install_cpu_for_cuda() -> None:
    from megatron.core.tensor_parallel import random

    cuda: Any = torch.cuda
    cuda.current_device = _current_device
    cuda.synchronize = cuda.empty_cache = cuda.set_device = _nothing
    cuda.current_stream = cuda.default_stream = cuda.Stream = cuda.Event = _Stream
    cuda.stream = lambda stream: contextlib.nullcontext()
    cuda.manual_seed = torch.manual_seed
    cuda.get_rng_state = cuda.random.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    cuda.set_rng_state = cuda.random.set_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    cuda.memory_allocated = cuda.max_memory_allocated = lambda *args: 0
    tensor, module, generators = torch.Tensor, torch.nn.Module, random
    for owner in (tensor, module):
        owner.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign, assignment]
    for name in ("FloatTensor", "IntTensor", "LongTensor", "BFloat16Tensor"):
        setattr(cuda, name, getattr(torch, name))
    generators._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)
    mode: Any = _CudaMeansCpu()
    mode.__enter__()  # for the life of the process
