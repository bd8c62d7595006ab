"""Autograd of the two linear cross-entropies, and how their weight gradient joins main_grad.

A weight that megatron-core's DistributedDataParallel wraps has `main_grad`, a float32 buffer that outlives
the backward. The weight's gradient is added there, in float32, and only here in the backward: a forward that
is run twice (activation recomputation), or never followed by a backward (evaluation), adds nothing. The
weight is kept on ctx beside its saved self, which under activation recomputation is another tensor, without
the attributes.

Two limits: torch.compile breaks the graph where the backward marks such a weight (the gradients are the
same), and a backward that is asked for hidden's gradient alone adds too (torch does not tell a function so).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tpt_kernels.loss.linear import linear_gradients_, linear_loss_and_gradients, linear_row_losses
from tpt_kernels.options import LossOptions
from tpt_kernels.reference import wide


class Recompute(torch.autograd.Function):
    """(hidden, weight, target, main_grad, group's name, options, impl) -> loss [tokens]."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, main_grad: Tensor | None,
        group: str | None, options: LossOptions, impl: str,
    ) -> Tensor:  # fmt: skip
        loss: Tensor
        loss, statistics = linear_row_losses(
            hidden, weight, target, group, options.vocab_size, options.ignore_index, options.z_loss,
            options.chunk_tokens, impl,
        )  # fmt: skip
        ctx.save_for_backward(hidden, weight, target, statistics)
        ctx.main_grad, ctx.owner = main_grad, weight
        ctx.group, ctx.options, ctx.impl = group, options, impl
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, target, statistics = ctx.saved_tensors
        options: LossOptions = ctx.options
        total: Tensor | None = None
        if ctx.needs_input_grad[1]:
            total = ctx.main_grad
            total = torch.zeros_like(weight, dtype=wide(weight)) if total is None else total
        hidden_gradient = linear_gradients_(
            hidden, weight, target, statistics, upstream, total, ctx.group, options.vocab_size,
            options.ignore_index, options.z_loss, options.chunk_tokens, ctx.impl,
        )  # fmt: skip
        result: Tensor | None = None
        if total is not None:
            result = total.to(weight.dtype) if ctx.main_grad is None else joined_main_grad(ctx.owner)
        return hidden_gradient, result, None, None, None, None, None


class WithGradients(torch.autograd.Function):
    """(hidden, weight, target, token_weight, main_grad, group's name, options, impl) -> sum, loss [tokens].

    loss is not differentiable. Saved for the backward: the gradients of hidden and of the weight.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, token_weight: Tensor,
        main_grad: Tensor | None, group: str | None, options: LossOptions, impl: str,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        loss, hidden_gradient, weight_gradient = linear_loss_and_gradients(
            hidden, weight, target, token_weight, ctx.needs_input_grad[1], group, options.vocab_size,
            options.ignore_index, options.z_loss, options.chunk_tokens, impl,
        )  # fmt: skip
        ctx.save_for_backward(weight, hidden_gradient, weight_gradient)
        ctx.main_grad, ctx.owner = main_grad, weight
        ctx.mark_non_differentiable(loss)
        return weighted_sum(loss, token_weight), loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        weight, hidden_gradient, weight_gradient = ctx.saved_tensors
        # In wide precision: a bf16 product would round the scalar itself first.
        scaled = (hidden_gradient.to(wide(hidden_gradient)) * upstream).to(hidden_gradient.dtype)
        result: Tensor | None = None
        if ctx.needs_input_grad[1] and ctx.main_grad is not None:
            ctx.main_grad.addcmul_(weight_gradient, upstream.to(weight_gradient.dtype))
            result = joined_main_grad(ctx.owner)
        elif ctx.needs_input_grad[1]:
            # out=: rounded once, without a float32 temporary as large as the weight's gradient.
            result = torch.mul(weight_gradient, upstream, out=torch.empty_like(weight))
        return scaled, result, None, None, None, None, None, None


def weighted_sum(loss: Tensor, token_weight: Tensor) -> Tensor:
    """sum(token_weight * loss), a scalar."""
    return (loss * token_weight).sum()


def main_grad_of(weight: Tensor) -> Tensor | None:
    """The buffer that the weight's gradient joins; None: the gradient is returned to autograd."""
    if not weight.requires_grad or not hasattr(weight, "grad_added_to_main_grad"):
        return None
    main_grad: Tensor | None = getattr(weight, "main_grad", None)
    return main_grad


def joined_main_grad(weight: Tensor) -> Tensor:
    """Marks the weight's gradient as added, and returns what autograd is given in its stead: zeros.

    megatron-core's hook wants a tensor to see that the backward came by; zeros are right also where another
    gradient of the same weight (a tied embedding's) is summed with it. Expanded from one number: autograd
    makes them whole only after this backward has let go of its own gradient, so that both are never in memory
    at once.
    """
    weight.grad_added_to_main_grad = True  # type: ignore[attr-defined]
    return weight.new_zeros(()).expand_as(weight)
