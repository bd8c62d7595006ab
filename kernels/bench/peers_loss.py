"""Cross-entropy, with the logits given and from hidden states: ours and every peer, one small function each.

`both`, forward and backward in one, is what is timed: several peers make the gradient in the forward.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import torch
from shapes import LossShape
from torch import Tensor
from torch.nn import functional
from trial import Contender, PeerRefusalError, Ready, Trial, Work, first_before


@dataclass(frozen=True)
class LogitsInputs:
    """logits [tokens, vocabulary], a leaf that some backward overwrites; target and upstream [tokens]."""

    shape: LossShape
    logits: Tensor
    source: Tensor  # what `logits` held, put back before every run
    target: Tensor
    upstream: Tensor


@dataclass(frozen=True)
class LinearInputs:
    """hidden [tokens, hidden], weight [vocabulary, hidden]: leaves; target, upstream and ones [tokens]."""

    shape: LossShape
    hidden: Tensor
    weight: Tensor
    target: Tensor
    upstream: Tensor
    ones: Tensor


type LogitsPeer = Callable[[LogitsInputs], Ready]
type LinearPeer = Callable[[LinearInputs], Ready]


def logits_inputs(shape: LossShape, device: torch.device) -> LogitsInputs:
    random = torch.Generator(device).manual_seed(0)
    size = (shape.tokens, shape.vocabulary)
    source = torch.randn(size, generator=random, device=device, dtype=shape.dtype)
    return LogitsInputs(shape, source.clone().requires_grad_(), source, *_target(shape, random))


def linear_inputs(shape: LossShape, device: torch.device) -> LinearInputs:
    random = torch.Generator(device).manual_seed(0)

    def rows(count: int) -> Tensor:
        return torch.randn(count, shape.hidden, generator=random, device=device, dtype=shape.dtype)

    hidden = rows(shape.tokens).requires_grad_()
    weight = rows(shape.vocabulary).mul_(shape.hidden**-0.5).requires_grad_()  # logits of variance 1
    target, upstream = _target(shape, random)
    return LinearInputs(shape, hidden, weight, target, upstream, torch.ones_like(upstream))


def _target(shape: LossShape, random: torch.Generator) -> tuple[Tensor, Tensor]:
    size, device = (shape.tokens,), random.device
    target = torch.randint(0, shape.vocabulary, size, generator=random, device=device)
    return target, torch.rand(size, generator=random, device=device)


def logits_trial(x: LogitsInputs) -> Trial:
    def restore() -> None:
        with torch.no_grad():
            x.logits.copy_(x.source)

    work = {"both": Work(x.shape.logits_traffic, "TB/s")}
    return Trial("cross_entropy", x.shape.name, (x.logits,), x.upstream, restore, work)


def linear_trial(x: LinearInputs, op: str) -> Trial:
    work = {"both": Work(x.shape.linear_flop, "TFLOP/s")}
    return Trial(op, x.shape.name, (x.hidden, x.weight), x.upstream, lambda: None, work)


def logits_contenders(
    x: LogitsInputs, impls: tuple[str, ...], more: Mapping[str, LogitsPeer]
) -> dict[str, Contender]:
    """torch's first, then ours by impl, then the others; `more` are peers that this folder may not import."""
    mine: dict[str, Contender] = {f"ours {impl}": partial(ours_logits, x, impl=impl) for impl in impls}
    return first_before(mine, {name: partial(peer, x) for name, peer in {**LOGITS_PEERS, **more}.items()})


def linear_contenders(x: LinearInputs, impls: tuple[str, ...], op: str) -> dict[str, Contender]:
    """torch's first, then ours by impl, then the other peers of `op`."""
    mine: dict[str, Contender] = {f"ours {impl}": partial(ours_linear, x, impl=impl, op=op) for impl in impls}
    return first_before(mine, {name: partial(peer, x) for name, peer in LINEAR_PEERS[op].items()})


def ours_logits(x: LogitsInputs, *, impl: str) -> Ready:
    from tpt_kernels import cross_entropy

    return Ready(lambda: cross_entropy(x.logits, x.target, impl=impl))


def ours_linear(x: LinearInputs, *, impl: str, op: str) -> Ready:
    if op == "linear_cross_entropy":
        from tpt_kernels import linear_cross_entropy

        return Ready(lambda: linear_cross_entropy(x.hidden, x.weight, x.target, impl=impl))
    from tpt_kernels import linear_cross_entropy_sum

    return Ready(lambda: linear_cross_entropy_sum(x.hidden, x.weight, x.target, x.ones, impl=impl)[0])


def torch_logits(x: LogitsInputs, *, wide: bool) -> Ready:
    """torch's own; in the logits' dtype its statistics are rounded to it, `wide` pays for a float32 copy."""
    return Ready(
        lambda: functional.cross_entropy(x.logits.float() if wide else x.logits, x.target, reduction="none")
    )


def liger_logits(x: LogitsInputs) -> Ready:
    run = import_module("liger_kernel.transformers.functional").liger_cross_entropy
    return Ready(lambda: run(x.logits, x.target, reduction="none"))


def quack_logits(x: LogitsInputs) -> Ready:
    run = import_module("quack.cross_entropy").cross_entropy
    return Ready(lambda: run(x.logits, x.target, reduction="none", inplace_backward=True))


def torch_unfused(x: LinearInputs, *, reduction: str) -> Ready:
    """A matrix product and a cross-entropy, all logits in memory."""
    return Ready(
        lambda: functional.cross_entropy(
            functional.linear(x.hidden, x.weight).float(), x.target, reduction=reduction
        )
    )


def torch_chunked(x: LinearInputs, *, reduction: str) -> Ready:
    """torch's own linear_cross_entropy with its chunked path on."""
    run = getattr(functional, "linear_cross_entropy", None)
    if run is None or not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise PeerRefusalError(f"torch {torch.__version__} has no chunked linear_cross_entropy, 2.13 has")
    options = torch.nn.LinearCrossEntropyOptions()
    return Ready(lambda: run(x.hidden, x.weight, x.target, reduction=reduction, options=options))


def liger_linear(x: LinearInputs, *, reduction: str, wide: bool) -> Ready:
    """As shipped it sums the weight's gradient in the weight's dtype; `wide` asks for float32, like ours."""
    run = import_module("liger_kernel.transformers.functional").liger_fused_linear_cross_entropy
    dtype = torch.float32 if wide else None
    return Ready(lambda: run(x.hidden, x.weight, x.target, reduction=reduction, accum_dtype=dtype))


def cut_linear(x: LinearInputs, *, reduction: str, exact: bool) -> Ready:
    """Apple's cut-cross-entropy; as shipped it leaves small gradients out, `exact` leaves none out."""
    run = import_module("cut_cross_entropy").linear_cross_entropy
    options = {"filter_eps": None} if exact else {}
    return Ready(lambda: run(x.hidden, x.weight, x.target, reduction=reduction, impl="cce", **options))


def quack_linear(x: LinearInputs) -> Ready:
    """Per-token losses: QuACK's chunked path gives sums only, so this one holds all logits."""
    run = import_module("quack.linear_cross_entropy").linear_cross_entropy_func
    return Ready(
        lambda: run(x.hidden, x.weight, None, x.target, reduction="none", inplace_backward=True)
    )  # fmt: skip


def quack_chunked(x: LinearInputs, *, tuned: bool) -> Ready:
    """`tuned`, as shipped, compiles its products in every configuration at a shape's first call."""
    run = import_module("quack.linear_cross_entropy").chunked_linear_cross_entropy
    return Ready(lambda: run(x.hidden, x.weight, x.target, reduction="sum", tuned=tuned))


LOGITS_PEERS: Mapping[str, LogitsPeer] = {
    "torch": partial(torch_logits, wide=False),
    "torch float32": partial(torch_logits, wide=True),
    "liger": liger_logits,
    "quack": quack_logits,
}
LINEAR_PEERS: Mapping[str, Mapping[str, LinearPeer]] = {
    "linear_cross_entropy": {
        "torch unfused": partial(torch_unfused, reduction="none"),
        "torch chunked": partial(torch_chunked, reduction="none"),
        "liger": partial(liger_linear, reduction="none", wide=False),
        "liger float32 sums": partial(liger_linear, reduction="none", wide=True),
        "cce": partial(cut_linear, reduction="none", exact=False),
        "cce exact": partial(cut_linear, reduction="none", exact=True),
        "quack": quack_linear,
    },
    "linear_cross_entropy_sum": {
        "torch unfused": partial(torch_unfused, reduction="sum"),
        "torch chunked": partial(torch_chunked, reduction="sum"),
        "liger": partial(liger_linear, reduction="sum", wide=False),
        "liger float32 sums": partial(liger_linear, reduction="sum", wide=True),
        "cce": partial(cut_linear, reduction="sum", exact=False),
        "cce exact": partial(cut_linear, reduction="sum", exact=True),
        "quack": partial(quack_chunked, tuned=True),
        "quack untuned": partial(quack_chunked, tuned=False),
    },
}
