"""Attention by torch against float64, alone and under `auto`, and which implementation a name stands for."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from tpt_kernels import attention, choice, cross_entropy, linear_cross_entropy, linear_cross_entropy_sum

DOCUMENTS = [[1], [17], [5, 1, 11], [8, 8, 8]]


def heads(tokens: int, count: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(tokens, count, dim, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def by_document(query, key, value, lengths):
    """Document by document in float64: what the ops must equal."""
    out = []
    for q, k, v in zip(*(t.double().split(lengths) for t in (query, key, value)), strict=True):
        groups = q.shape[1] // k.shape[1]
        k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
        heads_first = [t.transpose(0, 1) for t in (q, k, v)]
        out.append(scaled_dot_product_attention(*heads_first, is_causal=True).transpose(0, 1))
    return torch.cat(out)


@pytest.mark.parametrize("impl", ["reference", "sdpa", "auto"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("lengths", DOCUMENTS)
def test_attention_forward_and_backward(impl, kv_heads, lengths):
    tokens = sum(lengths)
    inputs = [heads(tokens, n, 8, seed) for seed, n in enumerate((4, kv_heads, kv_heads))]
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    out = attention(*inputs, cu_seqlens=bounds, max_seqlen=max(lengths), impl=impl)
    want = by_document(*inputs, lengths)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
    got_gradients = torch.autograd.grad(out, inputs, upstream)
    want_gradients = torch.autograd.grad(want, inputs, upstream.double())
    for got, expected in zip((out, *got_gradients), (want, *want_gradients), strict=True):
        torch.testing.assert_close(got.double(), expected.double(), rtol=1e-5, atol=1e-6)


def test_query_positions_place_a_part_of_the_queries():
    lengths = [5, 11]
    query, key, value = (heads(16, n, 8, seed) for seed, n in enumerate((4, 2, 2)))
    bounds = torch.tensor([0, 5, 16], dtype=torch.int32)
    whole = by_document(query, key, value, lengths)
    positions = torch.tensor([3, 4, 12, 15], dtype=torch.int32)
    part = attention(
        query[positions], key, value, cu_seqlens=bounds, max_seqlen=11, query_positions=positions
    )
    torch.testing.assert_close(part.double(), whole[positions], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", [attention, cross_entropy, linear_cross_entropy, linear_cross_entropy_sum])
def test_unknown_impl_is_named(op):
    hidden, weight = torch.randn(6, 4), torch.randn(9, 4)
    target = torch.zeros(6, dtype=torch.int64)
    positional, named = {
        attention: ((hidden[:, None],) * 3, {"cu_seqlens": target[:2], "max_seqlen": 6}),
        cross_entropy: ((hidden, target), {}),
        linear_cross_entropy: ((hidden, weight, target), {}),
        linear_cross_entropy_sum: ((hidden, weight, target, torch.ones(6)), {}),
    }[op]
    with pytest.raises(ValueError, match="got 'flash9', expected one of auto"):
        op(*positional, **named, impl="flash9")


@pytest.mark.parametrize("impl", ["sdpa", "cudnn", "flash"])
def test_placed_queries_are_refused_where_they_cannot_be(impl):
    inputs = [heads(4, 2, 8, seed) for seed in range(3)]
    bounds = torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(ValueError, match="with query_positions, expected 'triton' or 'reference'"):
        attention(*inputs, cu_seqlens=bounds, max_seqlen=4, query_positions=torch.arange(4).int(), impl=impl)


@pytest.mark.parametrize(
    ("target", "even", "change", "chosen"),
    [
        ("sm_90", True, {}, "cudnn"),
        ("sm_90", False, {}, "triton"),
        ("gfx942", True, {}, "triton"),
        ("sm_80", False, {}, "flash"),
        ("sm_80", False, {"placed": True}, "triton"),
        ("sm_90", True, {"deterministic": True}, "triton"),
        ("sm_90", True, {"dtype": torch.float32}, "triton"),
        ("sm_90", True, {"dtype": torch.float64}, "reference"),
        ("sm_90", False, {"dim": 320}, "reference"),
        (None, False, {}, "flash"),
        (None, False, {"dtype": torch.float32}, "reference"),
        (None, False, {"deterministic": True}, "reference"),
        (None, False, {"placed": True}, "reference"),
    ],
)
def test_auto_on_a_gpu(target, even, change, chosen, monkeypatch):
    """The table of choice.py, and what overrides it: placed queries, wide dtypes, one order of sums."""
    monkeypatch.setattr(choice, "has_tiles", lambda device: target is not None)
    monkeypatch.setattr(choice, "target_of", lambda device: target)
    monkeypatch.setattr(
        torch, "are_deterministic_algorithms_enabled", lambda: change.get("deterministic", False)
    )
    query = SimpleNamespace(
        device=torch.device("cuda"),
        dtype=change.get("dtype", torch.bfloat16),
        shape=(8, 2, change.get("dim", 64)),
    )
    positions = torch.zeros(8) if change.get("placed") else None
    run = choice.attention_by("auto", query, torch.zeros(8), torch.zeros(3), 4 if even else 5, positions)
    assert run is choice.BY_NAME[chosen]
