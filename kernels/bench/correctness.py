"""Each op against float64 on random ragged documents, beside torch's own op in the same dtype.

Every check takes the op as an argument, so that a wrong one can be put in its place.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from check import Check, Waiting
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from trial import explain, refusals

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
HEAD_DIMS, GROUPS, HEADS = (128, 64, 96, 256), (1, 4, 8), 8
FLOOR = 1e-6  # below it an error counts as none
Z_LOSS, IGNORED = 1e-3, -100
LONGEST_DOCUMENT = 300


@dataclass(frozen=True)
class AttentionCase:
    lengths: tuple[int, ...]
    heads: int
    kv_heads: int
    dim: int
    dtype: torch.dtype
    seed: int

    @property
    def name(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"{kind} dim {self.dim} gqa {self.heads // self.kv_heads}, {sum(self.lengths)} tokens"

    @property
    def required(self) -> bool:
        """In bf16 at dim 128: every group size is a kernel of its own, a model trains with one of them."""
        return self.dtype == torch.bfloat16 and self.dim == 128


@dataclass(frozen=True)
class LossCase:
    """`columns` of logits, of which the last `padding` are padding."""

    tokens: int
    columns: int
    padding: int
    hidden: int
    dtype: torch.dtype
    seed: int

    @property
    def name(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {self.tokens} x {self.hidden} x {self.columns}"

    @property
    def required(self) -> bool:
        return self.dtype == torch.bfloat16


def attention_cases() -> list[AttentionCase]:
    """Every group size, dtype and head dim: each group in bf16 at dim 128, then what differs from that."""
    cases = []
    for seed, (group, dtype, dim) in enumerate(itertools.product(GROUPS, DTYPES, HEAD_DIMS)):
        chance = random.Random(seed)
        lengths = tuple(chance.randint(1, LONGEST_DOCUMENT) for _ in range(chance.randint(1, 6)))
        cases.append(AttentionCase(lengths, HEADS, HEADS // group, dim, dtype, seed))
    return sorted(cases, key=lambda case: (case.dtype != torch.bfloat16) + (case.dim != 128))


def loss_cases() -> list[LossCase]:
    """Ragged row counts and vocabularies: one column block and a tail, with and without padding."""
    sizes = [(1, 517, 0, 64), (77, 1000, 24, 96), (300, 8192, 100, 128)]
    return [
        LossCase(*size, dtype, seed) for seed, (size, dtype) in enumerate(itertools.product(sizes, DTYPES))
    ]


def check_attention(op: Callable[..., Tensor], case: AttentionCase, device: torch.device) -> Check:
    """Output and gradients of op(query, key, value, cu_seqlens=, max_seqlen=) -> [tokens, heads, dim]."""
    chance = torch.Generator().manual_seed(case.seed)

    def rows(heads: int) -> Tensor:
        size = (sum(case.lengths), heads, case.dim)
        return torch.randn(size, generator=chance).to(device, case.dtype)

    leaves = [rows(n).requires_grad_() for n in (case.heads, case.kv_heads, case.kv_heads)]
    upstream = rows(case.heads)
    bounds = torch.tensor([0, *itertools.accumulate(case.lengths)], dtype=torch.int32, device=device)

    def mine(*tensors: Tensor) -> Tensor:
        return op(*tensors, cu_seqlens=bounds, max_seqlen=max(case.lengths))

    def plain(*tensors: Tensor) -> Tensor:
        documents = zip(*(torch.split(t, list(case.lengths)) for t in tensors), strict=True)
        # Not cuDNN: it plans anew for every length, a second each.
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            return torch.cat([_document(*parts) for parts in documents])

    names = ("output", "dquery", "dkey", "dvalue")
    return _compare(f"attention {case.name}", names, mine, plain, leaves, upstream)


def check_linear(op: Callable[..., Tensor], case: LossCase, device: torch.device) -> Check:
    """Losses and both gradients of op(hidden, weight, target, options=) -> [tokens], any weights upstream."""
    leaves, target, upstream = _linear_case(case, device)
    options = _options(case)

    def mine(*tensors: Tensor) -> Tensor:
        return op(*tensors, target, options=options)

    def plain(hidden: Tensor, weight: Tensor) -> Tensor:
        return _losses(hidden @ weight.T, target, case)

    names = ("losses", "dhidden", "dweight")
    return _compare(f"linear_cross_entropy {case.name}", names, mine, plain, leaves, upstream)


def check_linear_sum(op: Callable[..., tuple[Tensor, Tensor]], case: LossCase, device: torch.device) -> Check:
    """The sum and both gradients under one scalar; op(hidden, weight, target, token_weight, options=)."""
    leaves, target, weights = _linear_case(case, device)
    options = _options(case)

    def mine(*tensors: Tensor) -> Tensor:
        total, losses = op(*tensors, target, weights, options=options)
        if losses.requires_grad or losses.shape != target.shape:
            raise ValueError(
                f"losses: got {list(losses.shape)}, expected {list(target.shape)} without gradient"
            )
        return total

    def plain(hidden: Tensor, weight: Tensor) -> Tensor:
        return (_losses(hidden @ weight.T, target, case) * weights).sum()

    names = ("sum", "dhidden", "dweight")
    # 0.5 is exact in every dtype: hidden's gradient, kept rounded, would be rounded again by another.
    scalar = torch.tensor(0.5, device=device)
    return _compare(f"linear_cross_entropy_sum {case.name}", names, mine, plain, leaves, scalar)


def check_cross_entropy(op: Callable[..., Tensor], case: LossCase, device: torch.device) -> Check:
    """Losses within 1e-6 in fp32 whatever the logits' dtype, gradients one rounding from theirs.

    op(logits, target, options=) -> [tokens]; it may overwrite the logits.
    """
    name = f"cross_entropy {case.name}"
    chance = torch.Generator().manual_seed(case.seed)
    source = (4 * torch.randn(case.tokens, case.columns, generator=chance)).to(device, case.dtype)
    target, upstream = _target(case, chance, device)
    wide = source.double().requires_grad_()
    truth = _losses(wide, target, case)
    (true_gradient,) = torch.autograd.grad(truth, wide, upstream.double())
    logits = source.clone().requires_grad_()
    try:
        losses = op(logits, target, options=_options(case))
        (gradient,) = torch.autograd.grad(losses, logits, upstream)
    except refusals() as error:
        return Check(name, False, explain(error))
    size = wide[:, : case.columns - case.padding].logsumexp(1).abs() + 1
    loss_bound = 1e-6 * (truth.abs() + size)
    kind = torch.finfo(case.dtype)
    # Half a unit in the last place, 1e-5 for the fp32 exponential, and half of fp16's smallest step near 0.
    relative = kind.eps / 2 + 1e-5 if case.dtype != torch.float32 else 1e-5
    bound = relative * true_gradient.abs() + 1e-6 * upstream.double()[:, None] + kind.tiny * kind.eps / 2
    wrong = []
    for what, got, want, limit in (
        ("losses", losses, truth, loss_bound), ("dlogits", gradient, true_gradient, bound)
    ):  # fmt: skip
        excess = ((got.double() - want).abs() / limit).max().item()
        if not excess <= 1:  # NaN is wrong too
            wrong.append(f"{what}: {excess:.3g} times the bound")
    if losses.dtype != torch.float32:
        wrong.append(f"losses: {losses.dtype}, expected float32")
    return Check(name, not wrong, "; ".join(wrong) or "within the bounds")


def checks(ops: Sequence[tuple[str, str, Callable[..., object]]], device: torch.device) -> list[Waiting]:
    """Every check of (op's name, impl, op): attention's required ones, the losses', then the others.

    The impls of a case come side by side.
    """
    losses: Sequence[Any] = loss_cases()
    waiting = []
    for name, run in BY_OP.items():
        for case in attention_cases() if name == "attention" else losses:
            for _, impl, op in (o for o in ops if o[0] == name):
                title = f"{name} {case.name} [{impl}]"
                waiting.append(Waiting(title, partial(run, op, case, device), case.required))
    return sorted(waiting, key=lambda w: (not w.required, w.required and not w.name.startswith("attention")))


BY_OP: dict[str, Callable[..., Check]] = {
    "cross_entropy": check_cross_entropy,
    "linear_cross_entropy": check_linear,
    "linear_cross_entropy_sum": check_linear_sum,
    "attention": check_attention,
}


def _compare(
    name: str, names: Sequence[str], mine: Callable[..., Tensor], plain: Callable[..., Tensor],
    leaves: Sequence[Tensor], upstream: Tensor,
) -> Check:  # fmt: skip
    """Each tensor's largest error is at most twice torch's in the same dtype, or 1e-5 of its size in fp32."""
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    truth = _run(plain, wide, upstream)
    theirs = _run(plain, leaves, upstream)
    try:
        got = _run(mine, leaves, upstream)
    except refusals() as error:
        return Check(name, False, explain(error))
    wrong, worst = [], 0.0
    for what, g, t, w in zip(names, got, theirs, truth, strict=True):
        if g.shape != w.shape:
            wrong.append(f"{what}: shape {list(g.shape)}, expected {list(w.shape)}")
            continue
        off, peer = ((x.double() - w).abs().max().item() for x in (g, t))
        exact = leaves[0].dtype == torch.float32
        bound = (1e-5 * w.abs().max().item() if exact else 2 * peer) + FLOOR
        worst = max(worst, off / bound)
        if not off <= bound:  # NaN is wrong too
            wrong.append(f"{what}: error {off:.2e}, bound {bound:.2e}")
    return Check(name, not wrong, "; ".join(wrong) or f"at most {worst:.2f} of the bound")


def _run(op: Callable[..., Tensor], leaves: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    result = op(*leaves)
    gradients = torch.autograd.grad(result, leaves, upstream.to(result.dtype))
    return [result.detach(), *gradients]


def _document(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention within one document by torch; [tokens, heads, dim]."""
    q, k, v = (t.transpose(0, 1)[None] for t in (query, key, value))
    grouped = q.shape[1] != k.shape[1]
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)[0].transpose(
        0, 1
    )


def _losses(logits: Tensor, target: Tensor, case: LossCase) -> Tensor:
    """By torch in fp32, or fp64 for fp64 logits, over the columns that are not padding."""
    real = logits[:, : case.columns - case.padding]
    real = real if real.dtype == torch.float64 else real.float()
    losses = functional.cross_entropy(real, target, reduction="none", ignore_index=IGNORED)
    return losses + Z_LOSS * real.logsumexp(1).square() * (target != IGNORED)


def _options(case: LossCase) -> object:
    from tpt_kernels import LossOptions

    return LossOptions(
        vocab_size=case.columns - case.padding, ignore_index=IGNORED, z_loss=Z_LOSS, chunk_tokens=64
    )


def _target(case: LossCase, chance: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids of the vocabulary with about a fifth ignored, and random weights upstream; [tokens] each."""
    target = torch.randint(0, case.columns - case.padding, (case.tokens,), generator=chance)
    target[torch.rand(case.tokens, generator=chance) < 0.2] = IGNORED
    return target.to(device), torch.rand(case.tokens, generator=chance).to(device)


def _linear_case(case: LossCase, device: torch.device) -> tuple[list[Tensor], Tensor, Tensor]:
    chance = torch.Generator().manual_seed(case.seed)
    hidden = torch.randn(case.tokens, case.hidden, generator=chance)
    weight = torch.randn(case.columns, case.hidden, generator=chance) * case.hidden**-0.5
    leaves = [t.to(device, case.dtype).requires_grad_() for t in (hidden, weight)]
    return leaves, *_target(case, chance, device)
