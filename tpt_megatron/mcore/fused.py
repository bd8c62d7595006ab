"""The small ops between the matrix products: RMSNorm, SwiGLU and rotary embedding, a slot each.

Here stand the torch functions, which every other must agree with; `liger.py` has the fused ones.
"""

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional

from tpt_megatron.errors import ConfigError
from tpt_megatron.slots import resolve


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """hidden [..., width] / sqrt(mean(hidden^2) + epsilon) * weight [width] (Zhang and Sennrich 2019)."""
    return functional.rms_norm(hidden, (hidden.shape[-1],), weight, epsilon)


def swiglu(gate_and_up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020); [..., 2 * ffn], the gate's half first -> [..., ffn]."""
    gate, up = gate_and_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def rotary(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """heads [tokens, heads, dim] turned by halves: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin).

    cosine and sine [tokens, dim / 2] float32, without gradient; float32 throughout, rounded once at the end.
    """
    first, second = heads.float().chunk(2, dim=-1)
    c, s = cosine[:, None], sine[:, None]
    return torch.cat([first * c - second * s, second * c + first * s], dim=-1).to(heads.dtype)


def fused_op(name: str, value: str, device: torch.device) -> Callable[..., Tensor]:
    """The function in the slot kernels.`name` ("rms_norm", "swiglu" or "rotary") on `device`.

    "torch" is the function above; "liger" Liger-Kernel's; "auto" Liger's on a GPU where it is installed.
    Raises ConfigError for an unknown name, and for "liger" where it cannot run.
    """
    key = f"kernels.{name}"
    on_gpu = device.type == "cuda"  # ROCm's devices have this type too
    installed = find_spec("liger_kernel") is not None
    if value == "liger" and not on_gpu:
        raise ConfigError(
            f"{key}: Liger's kernels run on a GPU only", got=f"'liger' on device {device.type}",
            expected="'auto' or 'torch' here", fix=f"set {key}=auto",
        )  # fmt: skip
    if value == "liger" and not installed:
        raise ConfigError(
            f"{key}: the package liger_kernel is not installed", got="'liger'",
            # Without its dependencies: on ROCm its `triton` would be put over the one that torch brought.
            fix=f"pip install --no-deps 'liger-kernel>=0.8.5,<0.9', or set {key}=torch",
        )  # fmt: skip
    torch_function, liger_function = f"{__name__}:{name}", f"tpt_megatron.mcore.liger:{name}"
    builtin = {
        "auto": liger_function if on_gpu and installed else torch_function,
        "torch": torch_function,
        "liger": liger_function,
    }
    function: Callable[..., Tensor] = resolve(value, builtin, key)
    return function
