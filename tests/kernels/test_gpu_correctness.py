"""The checks of correctness: each passes the ops and fails a wrong one in their place."""
# ruff: noqa: E402

import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import bench_kernels

bench_kernels.add_paths()

import correctness
from correctness import AttentionCase, LossCase
from tpt_kernels import attention, cross_entropy, linear_cross_entropy, linear_cross_entropy_sum

CPU = torch.device("cpu")


ATTENTION_CASE = AttentionCase((5, 40, 1, 17), 8, 2, 64, torch.bfloat16, seed=1)
LOSS_CASE = LossCase(77, 1000, 24, 96, torch.bfloat16, seed=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kv_heads", [1, 2, 8])
def test_attention_passes(dtype, kv_heads):
    case = replace(ATTENTION_CASE, dtype=dtype, kv_heads=kv_heads)
    check = correctness.check_attention(partial(attention, impl="auto"), case, CPU)
    assert check.passed, check.detail


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize(
    ("check", "op"),
    [
        (correctness.check_cross_entropy, cross_entropy),
        (correctness.check_linear, linear_cross_entropy),
        (correctness.check_linear_sum, linear_cross_entropy_sum),
    ],
)
def test_losses_pass(check, op, impl, dtype):
    found = check(partial(op, impl=impl), replace(LOSS_CASE, dtype=dtype), CPU)
    assert found.passed, found.detail


def one_document(q, k, v, *, cu_seqlens, max_seqlen):
    return attention(
        q, k, v, cu_seqlens=cu_seqlens[[0, -1]], max_seqlen=int(cu_seqlens[-1]), impl="reference"
    )


def shifted_documents(q, k, v, *, cu_seqlens, max_seqlen):
    bounds = cu_seqlens.clone()
    bounds[2] -= 1
    return attention(q, k, v, cu_seqlens=bounds, max_seqlen=max_seqlen, impl="reference")


def wrong_groups(q, k, v, *, cu_seqlens, max_seqlen):
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    return attention(q[:, order], k, v, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, impl="reference")[
        :, [order.index(i) for i in range(8)]
    ]


def altered(change):
    def op(q, k, v, *, cu_seqlens, max_seqlen):
        out = attention(q, k, v, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, impl="sdpa")
        return change(out)

    return op


def nan_tail(out):
    return torch.cat([out[:-1], out[-1:] * math.nan])


class HalvedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, upstream):
        return upstream * 0.98


def refusing(*tensors, **named):
    raise RuntimeError("out of resource: shared memory")


def scaled(q, k, v, *, cu_seqlens, max_seqlen):
    return attention(q, k, v, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, scale=0.12, impl="sdpa")


WRONG_ATTENTION = [
    one_document, shifted_documents, wrong_groups, scaled, altered(nan_tail), altered(HalvedGradient.apply),
    altered(lambda out: out[:-1]), altered(lambda out: out * 1.02), refusing,
]  # fmt: skip


@pytest.mark.parametrize("op", WRONG_ATTENTION)
def test_a_wrong_attention_fails(op):
    check = correctness.check_attention(op, ATTENTION_CASE, CPU)
    assert check.passed is False
    assert check.detail


def with_options(op, **changes):
    return lambda *tensors, options: op(*tensors, options=replace(options, **changes), impl="reference")


class Truncated(torch.autograd.Function):
    """bf16 gradients cut off, not rounded: what Triton's interpreter does."""

    @staticmethod
    def forward(ctx, logits, target, options):
        wide = logits.detach().float().requires_grad_()
        with torch.enable_grad():
            loss = cross_entropy(wide, target, options=options, impl="reference")
        ctx.wide, ctx.loss = wide, loss
        return loss.detach()

    @staticmethod
    def backward(ctx, upstream):
        (gradient,) = torch.autograd.grad(ctx.loss, ctx.wide, upstream)
        bits = gradient.view(torch.int32) & ~0xFFFF
        return bits.view(torch.float32).bfloat16(), None, None


def coarse(logits, target, *, options):
    """Losses rounded to bf16, their gradient untouched."""
    losses = cross_entropy(logits, target, options=options, impl="reference")
    return losses + (losses.bfloat16() - losses).detach()


def differentiable(hidden, weight, target, token_weight, *, options):
    losses = linear_cross_entropy(hidden, weight, target, options=options)
    return losses @ token_weight, losses


def leaking(logits, target, *, options):
    return cross_entropy(
        logits, target.clamp_min(0), options=replace(options, ignore_index=-1), impl="reference"
    )


WRONG_LOSSES = [
    (correctness.check_cross_entropy, with_options(cross_entropy, z_loss=2e-3)),
    (correctness.check_cross_entropy, with_options(cross_entropy, vocab_size=None)),
    (correctness.check_cross_entropy, with_options(cross_entropy, vocab_size=975)),
    (correctness.check_cross_entropy, lambda x, t, options: Truncated.apply(x, t, options)),
    (correctness.check_cross_entropy, coarse),
    (correctness.check_cross_entropy, leaking),
    (correctness.check_cross_entropy, refusing),
    (correctness.check_linear, with_options(linear_cross_entropy, z_loss=0.0)),
    (correctness.check_linear, with_options(linear_cross_entropy, vocab_size=None)),
    (correctness.check_linear, refusing),
    (correctness.check_linear_sum, with_options(linear_cross_entropy_sum, z_loss=0.0)),
    (
        correctness.check_linear_sum,
        lambda h, w, t, u, options: linear_cross_entropy_sum(h, w, t, torch.ones_like(u), options=options),
    ),
    (correctness.check_linear_sum, differentiable),
]


@pytest.mark.parametrize(("check", "op"), WRONG_LOSSES)
def test_a_wrong_loss_fails(check, op):
    found = check(op, LOSS_CASE, CPU)
    assert found.passed is False
    assert found.detail
