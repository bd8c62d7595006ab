"""RMSNorm, SwiGLU and rotary embedding by Liger-Kernel's Triton kernels; signatures and results of fused.py.

They are imported from Liger's files and not from `liger_kernel.ops`, where an environment variable may put
another implementation under the same name.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """One pass over `hidden` each way; the weight's gradient is summed in float32, in a fixed order."""
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    # Where rows are many and short (the norms of query and key), Liger takes 16 rows at a time and, in the
    # last block, loads the scales of the missing rows as undefined values: 0 * NaN in the weight's gradient.
    num_rows = hidden.numel() // hidden.shape[-1]
    row_by_row = True if num_rows % 16 else None
    # "gemma": all in float32 and one rounding, as torch; "llama" rounds before the weight too.
    # Not in place: that writes over the incoming gradient, which a loss with gradients made in the forward
    # still owns and autograd may hand to others.
    casting, in_place = "gemma", False
    return _apply(LigerRMSNormFunction, hidden, weight, epsilon, 0.0, casting, in_place, row_by_row)


def swiglu(gate_and_up: Tensor) -> Tensor:
    """Reads both halves where they lie: no copies, and the gradient is written whole."""
    from liger_kernel.ops.swiglu import LigerFusedGateUpSiLUMulFunction

    # Not in place: it would write the gradient over the first product's output, which recomputation,
    # a hook or a second backward may still read.
    # Rows of two dimensions: Liger's backward gives them back in no other shape.
    rows = _apply(LigerFusedGateUpSiLUMulFunction, gate_and_up.flatten(0, -2), False)
    return rows.view(*gate_and_up.shape[:-1], -1)


def rotary(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Liger's layout [batch, heads, tokens, dim] is a view of ours, so nothing is transposed in memory.

    Its kernel turns in place, both ways; a copy keeps the layer's own tensors and the incoming gradient.
    With that copy it moves 8 bytes a bf16 element, where the torch function moves 48 in nine kernels.
    """
    return _apply(_Rotary, heads, cosine, sine)


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        from liger_kernel.ops.rope import rope_forward

        ctx.save_for_backward(cosine, sine)
        return _turned(rope_forward, heads, cosine, sine)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        from liger_kernel.ops.rope import rope_backward

        return _turned(rope_backward, gradient, *ctx.saved_tensors), None, None


def _turned(turn: Callable[..., Any], heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """A turned copy of heads [tokens, heads, dim]; the kernel's arithmetic is in the dtype of the sine.

    The angles go as one row of a batch: Liger takes their first size as a constant, and would compile a
    kernel for every number of tokens.
    """
    copy = heads.clone(memory_format=torch.contiguous_format)
    spare = copy.new_zeros(heads.shape[0], 1, heads.shape[2])  # Liger turns a query and a key in one call
    query, key = (tensor[None].transpose(1, 2) for tensor in (copy, spare))  # [1, heads, tokens, dim]
    turned: Tensor = turn(query, key, cosine[None], sine[None], rotary_dim=heads.shape[2])[0]
    return turned.transpose(1, 2)[0]


def _apply(function: Any, *arguments: object) -> Tensor:
    result: Tensor = function.apply(*arguments)
    return result
