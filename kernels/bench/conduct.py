"""How an op behaves: it repeats to the bit, never makes the host wait, and keeps to its memory."""

import contextlib
import itertools
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from check import Check
from clock import Clock
from torch import Tensor
from trial import explain, refusals

MEMORY_SHAPE = (8192, 4096, 128_256)  # tokens, hidden, vocabulary
MEMORY_BOUND = 0.8e9  # bytes beyond the gradients themselves

type Run = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class Size:
    """Of the tensors in `runs_of`."""

    tokens: int
    documents: int
    heads: int
    kv_heads: int
    dim: int
    hidden: int
    vocabulary: int
    dtype: torch.dtype


LARGE = Size(4096, 8, 8, 2, 128, 1024, 32_000, torch.bfloat16)


def runs_of(ops: Mapping[str, Callable[..., object]], size: Size, device: torch.device) -> dict[str, Run]:
    """For each op one call forward and backward on fresh copies of fixed inputs; gives every result.

    Nothing in a call moves data between host and device.
    """
    chance = torch.Generator(device).manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=chance, device=device).to(size.dtype)

    cuts = sorted(random.Random(1).sample(range(1, size.tokens), size.documents - 1))
    bounds = torch.tensor([0, *cuts, size.tokens], dtype=torch.int32, device=device)
    longest = max(b - a for a, b in itertools.pairwise([0, *cuts, size.tokens]))
    heads = [normal(size.tokens, n, size.dim) for n in (size.heads, size.kv_heads, size.kv_heads, size.heads)]
    logits, hidden = normal(size.tokens, size.vocabulary), normal(size.tokens, size.hidden)
    weight = normal(size.vocabulary, size.hidden) * size.hidden**-0.5
    target = torch.randint(0, size.vocabulary, (size.tokens,), generator=chance, device=device)
    upstream = torch.rand(size.tokens, generator=chance, device=device)

    def attention(op: Callable[..., Tensor]) -> list[Tensor]:
        leaves = _fresh(heads[:3])
        out = op(*leaves, cu_seqlens=bounds, max_seqlen=longest)
        return [out.detach(), *torch.autograd.grad(out, leaves, heads[3])]

    def cross_entropy(op: Callable[..., Tensor]) -> list[Tensor]:
        leaves = _fresh([logits])
        losses = op(*leaves, target)
        return [losses.detach(), *torch.autograd.grad(losses, leaves, upstream)]

    def linear(op: Callable[..., Tensor]) -> list[Tensor]:
        leaves = _fresh([hidden, weight])
        losses = op(*leaves, target)
        return [losses.detach(), *torch.autograd.grad(losses, leaves, upstream)]

    def linear_sum(op: Callable[..., tuple[Tensor, Tensor]]) -> list[Tensor]:
        leaves = _fresh([hidden, weight])
        total, losses = op(*leaves, target, upstream)
        return [total.detach(), losses, *torch.autograd.grad(total, leaves)]

    calls: dict[str, Callable[..., list[Tensor]]] = {
        "attention": attention, "cross_entropy": cross_entropy,
        "linear_cross_entropy": linear, "linear_cross_entropy_sum": linear_sum,
    }  # fmt: skip
    return {name: partial(calls[name], op) for name, op in ops.items()}


def _fresh(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.clone().requires_grad_() for t in tensors]


def check_repetition(name: str, run: Run) -> Check:
    """Two calls give the same bits, under torch's deterministic mode (what `auto` looks at to choose)."""
    title = f"{name}: repeats to the bit"
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    # warn_only: else torch refuses a matrix product unless cuBLAS' workspace was fixed in the environment.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            first, second = run(), run()
    except refusals() as error:
        return Check(title, False, explain(error))
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    # NaN is not equal to itself, and is wrong here anyhow.
    differ = [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if not torch.equal(a, b)]
    return Check(
        title, not differ, f"results {differ} differ" if differ else "result and gradients are equal"
    )


@contextlib.contextmanager
def cuda_guard() -> Iterator[None]:
    """Whatever makes the host wait for the device raises RuntimeError."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_no_synchronisation(
    name: str, run: Run, guard: Callable[[], contextlib.AbstractContextManager[None]] = cuda_guard
) -> Check:
    """Forward and backward never make the host wait; the first call, which may compile, is not watched."""
    title = f"{name}: no host synchronisation"
    try:
        run()
        with guard():
            run()
    except refusals() as error:
        return Check(title, False, explain(error))
    return Check(title, True, "none")


def check_memory(
    name: str, op: Callable[..., Any], clock: Clock,
    shape: tuple[int, int, int] = MEMORY_SHAPE, bound: float = MEMORY_BOUND,
) -> Check:  # fmt: skip
    """linear_cross_entropy_sum holds `bound` bytes at most beyond hidden's gradient and the weight's in fp32.

    The backward is held to the same beyond the two gradients that it returns.
    """
    tokens, hidden_size, vocabulary = shape
    title = f"{name}: memory at {tokens} x {hidden_size} x {vocabulary}"
    device, dtype = clock.device, torch.bfloat16
    kept: list[Tensor] = []
    try:
        hidden = torch.randn(tokens, hidden_size, device=device, dtype=dtype).requires_grad_()
        weight = (torch.randn(vocabulary, hidden_size, device=device, dtype=dtype) * 0.02).requires_grad_()
        target = torch.randint(0, vocabulary, (tokens,), device=device)
        ones = torch.ones(tokens, device=device)

        def forward() -> None:
            kept.append(op(hidden, weight, target, ones)[0])

        def backward() -> None:
            torch.autograd.grad(kept.pop(), (hidden, weight))

        forward()  # the first call compiles, and takes the library's workspace
        backward()
        peaks = [clock.peak_bytes(forward), clock.peak_bytes(backward)]
    except refusals() as error:
        return Check(title, False, explain(error))
    own = [2 * hidden.numel() + 4 * weight.numel(), 2 * hidden.numel() + 2 * weight.numel()]
    if None in peaks:
        return Check(title, None, "not run: only a GPU's memory is counted")
    beyond = [peak - gradients for peak, gradients in zip(peaks, own, strict=True) if peak is not None]
    detail = f"forward {beyond[0] / 1e9:.2f} GB, backward {beyond[1] / 1e9:.2f} GB beyond the gradients"
    return Check(title, max(beyond) <= bound, f"{detail}, at most {bound / 1e9:.2f}")
