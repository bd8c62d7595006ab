"""The compile targets that have committed tiles, and which of them a device is."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor
from triton import knobs

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942", "gfx950")
HOST = "cpu"  # Triton's interpreter: any tile runs, small ones are quick


def target_of(device: torch.device) -> str:
    """The target whose tiles fit `device`; the CPU's are for the interpreter.

    ValueError for the CPU without it, and for a GPU without committed tiles; consumer chips of compute
    capability 8.6, 8.9 and 12.x have 100 KB of shared memory, which the data-centre tiles exceed.
    """
    if device.type == "cpu":
        if not knobs.runtime.interpret:
            raise ValueError(
                "impl='triton' on CPU tensors runs in Triton's interpreter alone: set TRITON_INTERPRET=1 and "
                "call tpt_kernels.testing.install_interpreter() first, or use impl='auto'"
            )
        return HOST
    if device.type != "cuda":
        raise ValueError(f"device: got {device}, expected a CUDA or ROCm device, or the CPU")
    if torch.version.hip:
        name = torch.cuda.get_device_properties(device).gcnArchName.partition(":")[0]
    else:
        major, minor = torch.cuda.get_device_capability(device)
        name = "sm_100" if major == 10 else f"sm_{major}{minor}"
    if name not in TARGETS:
        raise ValueError(
            f"device: got {name}, expected one of {', '.join(TARGETS)}; "
            "use impl='sdpa' for attention, impl='reference' for losses"
        )
    return str(name)


def has_tiles(device: torch.device) -> bool:
    """Whether Triton's kernels have committed tiles for this GPU."""
    if device.type != "cuda":
        return False
    try:
        target_of(device)
    except ValueError:
        return False
    return True


def device_of(tensor: Tensor) -> AbstractContextManager[None]:
    """Makes the tensor's GPU the current one, where Triton launches; nothing for a tensor on the CPU."""
    guard: AbstractContextManager[None] = torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]
    return guard
