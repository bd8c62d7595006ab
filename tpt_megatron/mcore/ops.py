"""The functions in the model's slots `kernels.*`, and the seat of its loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from tpt_kernels import LossOptions
from tpt_kernels.choice import ATTENTION_IMPLS
from tpt_kernels.loss.rows import LOSS_IMPLS

from tpt_megatron.config.schema import KernelsConfig
from tpt_megatron.errors import ConfigError
from tpt_megatron.mcore.fused import fused_op
from tpt_megatron.slots import resolve

LOSSES = ("linear_cross_entropy_sum", "linear_cross_entropy", "cross_entropy")


class TokenLosses(NamedTuple):
    """What the last stage returns: the sum that is trained on, and each token's loss for the log."""

    total: Tensor  # scalar, over the tokens that count
    losses: Tensor  # [tokens] float32


type Loss = Callable[[Tensor, Tensor, Tensor, ProcessGroup, LossOptions], TokenLosses]


@dataclass(frozen=True)
class Ops:
    """attention, rms_norm, swiglu, rotary: with the signatures of tpt_kernels and of fused.py.

    loss: (hidden [tokens, hidden], weight [vocab / tensor, hidden], labels [tokens], group, options).
    """

    attention: Callable[..., Tensor]
    loss: Loss
    rms_norm: Callable[..., Tensor]
    swiglu: Callable[..., Tensor]
    rotary: Callable[..., Tensor]


def model_ops(kernels: KernelsConfig, device: torch.device) -> Ops:
    """Raises ConfigError for an unknown name, and for a slot that kernels.loss leaves unused."""
    return Ops(
        attention=_op("attention", kernels.attention, ATTENTION_IMPLS),
        loss=_loss(kernels),
        rms_norm=fused_op("rms_norm", kernels.rms_norm, device),
        swiglu=fused_op("swiglu", kernels.swiglu, device),
        rotary=fused_op("rotary", kernels.rotary, device),
    )


def _op(name: str, value: str, impls: tuple[str, ...]) -> Callable[..., Any]:
    """The function of a slot; a builtin's name is its `impl`."""
    if ":" in value:
        own: Callable[..., Any] = resolve(value, {}, f"kernels.{name}")
        return own
    function = resolve(value, dict.fromkeys(impls, f"tpt_kernels:{name}"), f"kernels.{name}")
    return lambda *args, **named: function(*args, **named, impl=value)


def _loss(kernels: KernelsConfig) -> Loss:
    for name in LOSSES:
        if name != kernels.loss and getattr(kernels, name) != "auto":
            raise ConfigError(
                f"kernels.{name}: set, but kernels.loss does not use it",
                got=f"kernels.{name}={getattr(kernels, name)!r} with kernels.loss={kernels.loss!r}",
                fix=f"set kernels.loss={name}",
            )
    op = _op(kernels.loss, getattr(kernels, kernels.loss), LOSS_IMPLS)
    return _SEATS[kernels.loss](op)


def _by_sum(op: Callable[..., tuple[Tensor, Tensor]]) -> Loss:
    def loss(
        hidden: Tensor, weight: Tensor, labels: Tensor, group: ProcessGroup, options: LossOptions
    ) -> TokenLosses:
        counted = (labels != options.ignore_index).float()
        return TokenLosses(*op(hidden, weight, labels, counted, group=group, options=options))

    return loss


def _by_token(op: Callable[..., Tensor]) -> Loss:
    def loss(
        hidden: Tensor, weight: Tensor, labels: Tensor, group: ProcessGroup, options: LossOptions
    ) -> TokenLosses:
        losses = op(hidden, weight, labels, group=group, options=options)
        return TokenLosses(losses.sum(), losses.detach())

    return loss


def _by_logits(op: Callable[..., Tensor]) -> Loss:
    def loss(
        hidden: Tensor, weight: Tensor, labels: Tensor, group: ProcessGroup, options: LossOptions
    ) -> TokenLosses:
        logits = hidden @ weight.T  # [tokens, padded vocab / tensor], the batch's at once
        losses = op(logits, labels, group=group, options=options)
        return TokenLosses(losses.sum(), losses.detach())

    return loss


_SEATS: dict[str, Callable[[Callable[..., Any]], Loss]] = {
    "linear_cross_entropy_sum": _by_sum,
    "linear_cross_entropy": _by_token,
    "cross_entropy": _by_logits,
}
