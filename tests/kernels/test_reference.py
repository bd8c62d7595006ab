"""The ops against float64 torch written another way, alone and with the vocabulary split over two ranks."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.functional import cross_entropy as torch_cross_entropy
from torch.nn.functional import scaled_dot_product_attention
from tpt_kernels import LossOptions, attention, cross_entropy, linear_cross_entropy

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


def loss_by_torch(logits, target, options):
    """float64 cross-entropy over the true vocabulary, with z-loss."""
    real = logits.double()[:, : options.vocab_size]
    loss = torch_cross_entropy(real, target, reduction="none", ignore_index=options.ignore_index)
    kept = target != options.ignore_index
    return loss + options.z_loss * real.logsumexp(1).square() * kept


def rows(seed: int):
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(23, 12, generator=random).requires_grad_()
    weight = torch.randn(40, 12, generator=random).requires_grad_()
    target = torch.randint(0, 33, (23,), generator=random)
    target[::5] = -100
    return hidden, weight, target, torch.rand(23, generator=random)


@pytest.mark.parametrize("chunk_tokens", [4, 23, 100])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_losses_and_gradients(chunk_tokens, z_loss):
    hidden, weight, target, upstream = rows(0)
    options = LossOptions(vocab_size=33, z_loss=z_loss, chunk_tokens=chunk_tokens)
    want = loss_by_torch(hidden.double() @ weight.double().T, target, options)
    want_gradients = torch.autograd.grad(want, (hidden, weight), upstream.double())
    for loss in (
        linear_cross_entropy(hidden, weight, target, options=options),
        cross_entropy(hidden @ weight.T, target, options=options),
    ):
        gradients = torch.autograd.grad(loss, (hidden, weight), upstream)
        assert loss.dtype == torch.float32
        for got, expected in zip((loss, *gradients), (want, *want_gradients), strict=True):
            torch.testing.assert_close(got.double(), expected.double(), rtol=1e-5, atol=1e-5)
        assert not gradients[1][33:].any(), "padding columns have no gradient"


def test_all_rows_ignored_gives_zero():
    hidden, weight, target, _ = rows(0)
    loss = linear_cross_entropy(hidden, weight, torch.full_like(target, -100))
    assert not loss.any()
    assert not any(g.any() for g in torch.autograd.grad(loss.sum(), (hidden, weight)))


def split_over_ranks(rank: int, folder: str) -> None:
    """One of two ranks holds 20 of 40 columns; columns from 33 on, all on rank 1, are padding."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    hidden, weight, target, upstream = rows(1)
    options = LossOptions(vocab_size=33, z_loss=0.1, chunk_tokens=7)
    want = linear_cross_entropy(hidden, weight, target, options=options)
    want_gradients = torch.autograd.grad(want, (hidden, weight), upstream)
    mine = weight.detach()[rank * 20 : rank * 20 + 20].requires_grad_()
    for loss in (
        linear_cross_entropy(hidden, mine, target, group=dist.group.WORLD, options=options),
        cross_entropy(hidden @ mine.T, target, group=dist.group.WORLD, options=options),
    ):
        part, weight_gradient = torch.autograd.grad(loss, (hidden, mine), upstream)
        dist.all_reduce(part)  # whoever gathered the hidden states sums their gradient over the ranks
        torch.testing.assert_close(loss, want)
        torch.testing.assert_close(part, want_gradients[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            weight_gradient, want_gradients[1][rank * 20 : rank * 20 + 20], rtol=1e-5, atol=1e-5
        )
    dist.destroy_process_group()


def test_vocabulary_split_over_two_ranks(tmp_path):
    mp.spawn(split_over_ranks, args=(str(tmp_path),), nprocs=2)


def test_a_rank_with_padding_alone():
    """vocab_size 20 of 40: the second rank's columns are all padding, and nothing turns NaN."""
    hidden, weight, target, _ = rows(2)
    options = LossOptions(vocab_size=20)
    loss = cross_entropy(hidden @ weight.T, target % 20, options=options)
    assert torch.isfinite(loss).all()


@pytest.mark.parametrize("op", [attention, cross_entropy, linear_cross_entropy])
def test_unknown_impl_is_named(op):
    hidden, weight, target, _ = rows(0)
    arguments = {
        attention: ((hidden[:, None],) * 3, {"cu_seqlens": target[:2], "max_seqlen": 1}),
        cross_entropy: ((hidden, target), {}),
        linear_cross_entropy: ((hidden, weight, target), {}),
    }
    positional, named = arguments[op]
    with pytest.raises(ValueError, match="got 'flash9'"):
        op(*positional, **named, impl="flash9")
