"""Which attention `impl` names, and what "auto" takes on each device.

AUTO is the one table to edit after `make gpu` has measured: kernels/bench/RESULTS.md holds the figures.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tpt_kernels import reference, sdpa
from tpt_kernels.flash.op import attention as triton_attention
from tpt_kernels.flash.op import takes
from tpt_kernels.target import has_tiles, target_of

type Attention = Callable[..., Tensor]

BY_NAME: dict[str, Attention] = {
    "reference": reference.attention,
    "triton": triton_attention,
    "sdpa": sdpa.attention,
    "cudnn": sdpa.cudnn_attention,
    "flash": sdpa.flash_attention,
}

# target -> (documents of one length, ragged documents). Not measured by us yet: the order of published rates
# (Hopper, dim 128, causal, forward/backward TFLOP/s: cuDNN 566/470, FlashAttention-2 306/166, Triton 471/-).
AUTO = {
    "sm_80": ("flash", "flash"),
    "sm_90": ("cudnn", "triton"),
    "sm_100": ("cudnn", "triton"),
    "gfx942": ("triton", "triton"),
    "gfx950": ("triton", "triton"),
}

ATTENTION_IMPLS = ("auto", *BY_NAME)


def attention_by(
    impl: str, query: Tensor, key: Tensor, cu_seqlens: Tensor, max_seqlen: int, query_positions: Tensor | None
) -> Attention:
    """The function that `impl` names; ValueError for an unknown one, or one that cannot place queries."""
    if impl == "auto":
        impl = _auto(query, sdpa.even(key, cu_seqlens, max_seqlen), query_positions is not None)
    if impl not in BY_NAME:
        raise ValueError(f"impl: got {impl!r}, expected one of {', '.join(ATTENTION_IMPLS)}")
    if query_positions is not None and impl not in ("reference", "triton"):
        raise ValueError(f"impl: got {impl!r} with query_positions, expected 'triton' or 'reference'")
    return BY_NAME[impl]


def _auto(query: Tensor, even: bool, placed: bool) -> str:
    if query.device.type == "cpu":
        # sdpa cuts ragged documents by values read on the host, which torch.compile cannot trace.
        return "reference" if placed or torch.compiler.is_compiling() else "sdpa"
    # The peers' backward adds with atomics, in an order that changes from run to run; and they take no fp32.
    ours = placed or query.dtype == torch.float32 or torch.are_deterministic_algorithms_enabled()
    if has_tiles(query.device) and takes(query):
        return "triton" if ours else AUTO[target_of(query.device)][0 if even else 1]
    return "reference" if ours or query.dtype == torch.float64 or query.shape[2] > 256 else "flash"
