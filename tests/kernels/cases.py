"""What the kernels' tests share: ragged documents and tensors from a seed, and errors against float64."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def documents(tokens: int, count: int, seed: int) -> list[int]:
    """Lengths of `count` documents that sum to `tokens`; some may be empty."""
    cuts = sorted(random.Random(seed).choices(range(tokens + 1), k=count - 1))
    return [b - a for a, b in zip([0, *cuts], [*cuts, tokens], strict=True)]


def bounds(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


@dataclass(frozen=True)
class Heads:
    """Inputs of an attention, and its upstream gradient."""

    query: Tensor
    key: Tensor
    value: Tensor
    upstream: Tensor

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.query, self.key, self.value


def heads(
    tokens: int, kv_tokens: int, count: int, group: int, dim: int, dtype: torch.dtype, seed: int
) -> Heads:
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int, number: int) -> Tensor:
        return torch.randn(rows, number, dim, generator=generator).to(dtype).requires_grad_()

    query, key = draw(tokens, count), draw(kv_tokens, count // group)
    return Heads(query, key, draw(kv_tokens, count // group), draw(tokens, count).detach())


def gradients(out: Tensor, inputs: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    """The output and the inputs' gradients."""
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream.to(out.dtype))]


def doubled(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().double().requires_grad_() for t in inputs]


def largest_errors(got: Sequence[Tensor], want: Sequence[Tensor]) -> list[float]:
    """Largest absolute difference, tensor by tensor; NaN counts as infinite."""
    return [
        (g.double() - w.double()).abs().nan_to_num(float("inf")).max().item() if w.numel() else 0.0
        for g, w in zip(got, want, strict=True)
    ]
