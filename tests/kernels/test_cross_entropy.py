"""cross_entropy and the linear cross-entropies against float64, by torch and by Triton in the interpreter."""

import pytest
import torch
from tpt_kernels import LossOptions, cross_entropy, linear_cross_entropy, linear_cross_entropy_sum
from tpt_kernels.loss import linear
from tpt_kernels.loss.statistics import Columns

ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
IMPLS = ["triton", "reference"]


def rows(dtype, tokens=29, held=700, vocab_size=613, seed=0, spread=3.0):
    """Logits, targets with every fifth row ignored, and random upstream weights."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(tokens, held, generator=generator) * spread).to(dtype)
    target = torch.randint(0, vocab_size, (tokens,), generator=generator)
    target[::5] = -100
    return logits, target, torch.randn(tokens, generator=generator)


def truth(logits, target, options):
    """Loss of each row in float64, with the gradient of every logit."""
    wide = logits.detach().double().requires_grad_()
    real = wide[:, : options.vocab_size]
    logsumexp = real.logsumexp(1)
    hit = real.gather(1, target.clamp_min(0)[:, None]).squeeze(1)
    loss = logsumexp - hit + options.z_loss * logsumexp.square()
    return wide, loss.where(target != options.ignore_index, 0.0)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("z_loss", [0.0, 0.1])  # large on purpose: 1e-3 would hide a wrong factor
@pytest.mark.parametrize("vocab_size", [None, 613])
def test_losses_and_gradients(impl, dtype, z_loss, vocab_size):
    logits, target, upstream = rows(dtype)
    options = LossOptions(vocab_size=vocab_size, z_loss=z_loss)
    wide, want = truth(logits, target, options)
    (want_gradient,) = torch.autograd.grad(want, wide, upstream.double())
    mine = logits.clone().requires_grad_()
    loss = cross_entropy(mine, target, options=options, impl=impl)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), want.detach(), rtol=1e-6, atol=1e-7)
    (gradient,) = torch.autograd.grad(loss, mine, upstream)
    assert gradient.dtype == dtype
    # One rounding of the logits' dtype, on top of float32 arithmetic over an exponent of up to 30.
    slack = 40 * 2.0**-24
    limit = want_gradient.abs() * (ROUNDING[dtype] + slack) + upstream.abs()[:, None] * slack / 8
    limit += 2.0**-25 if dtype == torch.float16 else 0.0  # half of fp16's smallest number
    assert ((gradient.double() - want_gradient).abs() <= limit).all()
    assert not gradient[target == -100].any()
    assert not gradient[:, vocab_size:].any() if vocab_size else True


@pytest.mark.parametrize("impl", IMPLS)
def test_the_gradient_takes_the_logits_memory(impl):
    logits, target, upstream = rows(torch.bfloat16)
    mine = logits.clone().requires_grad_()
    loss = cross_entropy(mine, target, options=LossOptions(vocab_size=613), impl=impl)
    (gradient,) = torch.autograd.grad(loss, mine, upstream, retain_graph=True)
    assert gradient.data_ptr() == mine.data_ptr()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, mine, upstream)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("margin", [0.0, 5.0, 12.0, 40.0])
def test_confident_rows_keep_their_precision(impl, margin):
    """A target far above the rest has a small loss, which logsumexp - hit would round to nothing."""
    logits, target, _ = rows(torch.float32, spread=1.0)
    target = target.clamp_min(0)
    logits[torch.arange(len(target)), target] = logits[:, :613].amax(1) + margin
    _, want = truth(logits, target, LossOptions(vocab_size=613))
    loss = cross_entropy(logits, target, options=LossOptions(vocab_size=613), impl=impl)
    torch.testing.assert_close(loss.double(), want.detach(), rtol=2e-6, atol=1e-14)


@pytest.mark.parametrize("impl", IMPLS)
def test_large_and_masked_logits(impl):
    """exp(x) alone would overflow; -inf columns have probability 0."""
    logits, target, upstream = rows(torch.float32)
    logits = logits * 100
    logits[:, ::3] = float("-inf")
    target = (target.clamp_min(0) // 3 * 3 + 1).clamp_max(612)
    mine = logits.clone().requires_grad_()
    loss = cross_entropy(mine, target, options=LossOptions(vocab_size=613), impl=impl)
    _, want = truth(logits, target, LossOptions(vocab_size=613))
    torch.testing.assert_close(loss.double(), want.detach(), rtol=1e-6, atol=1e-6)
    assert torch.autograd.grad(loss, mine, upstream)[0].isfinite().all()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_ignored_rows_give_zero_whatever_they_hold(impl, poison):
    logits, target, upstream = rows(torch.bfloat16)
    logits[target == -100] = poison
    mine = logits.clone().requires_grad_()
    loss = cross_entropy(mine, target, options=LossOptions(z_loss=0.1), impl=impl)
    assert loss.isfinite().all()
    (gradient,) = torch.autograd.grad(loss, mine, upstream)
    assert gradient.isfinite().all()
    assert not gradient[target == -100].any()


@pytest.mark.parametrize("impl", IMPLS)
def test_strided_targets_and_upstream_weights(impl):
    """Every second number of a tensor, and one number expanded, as loss.sum() has it upstream."""
    logits, target, _ = rows(torch.float32)
    results = []
    for wanted, upstream in (
        (target, torch.ones(29)), (target.repeat_interleave(2)[::2], torch.ones(()).expand(29))
    ):  # fmt: skip
        mine = logits.clone().requires_grad_()
        loss = cross_entropy(mine, wanted, impl=impl)
        results.append([loss.detach(), *torch.autograd.grad(loss, mine, upstream)])
    for plain, strided in zip(*results, strict=True):
        assert torch.equal(plain, strided)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("wrong", [-1, 613, 699, 10**9])
def test_a_target_outside_of_the_vocabulary_is_nan(impl, wrong):
    """In the loss, and in the gradient, so that the step is left out."""
    logits, target, upstream = rows(torch.float32)
    target[3] = wrong
    mine = logits.clone().requires_grad_()
    loss = cross_entropy(mine, target, options=LossOptions(vocab_size=613), impl=impl)
    assert loss.isnan().tolist() == [i == 3 for i in range(len(target))]
    (gradient,) = torch.autograd.grad(loss, mine, upstream)
    assert gradient.isnan().any(dim=1).tolist() == [i == 3 for i in range(len(target))]


def test_rows_beyond_32_bits():
    """Rows 2^30 elements apart on memory that is never touched between them."""
    stride = 2**30 + 64
    logits, target, upstream = rows(torch.bfloat16, tokens=3)
    far = torch.empty(2 * stride + 700, dtype=torch.bfloat16).as_strided((3, 700), (stride, 1))
    far.copy_(logits)
    losses, near = [], logits.clone()
    for tensor in (far, near):
        mine = tensor.requires_grad_()
        losses.append(cross_entropy(mine, target, impl="triton"))
        losses[-1].backward(upstream)
    assert torch.equal(*losses)
    assert torch.equal(far.detach(), near.detach())


def linear_rows(dtype, seed=0, tokens=23, width=40, held=330):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(held, width, generator=generator) * 0.3).to(dtype).requires_grad_()
    target = torch.randint(0, 300, (tokens,), generator=generator)
    target[::5] = -100
    return hidden, weight, target, torch.randn(tokens, generator=generator)


def weighted(op, hidden, weight, target, upstream, options, impl):
    """Losses and the gradients of hidden and weight under random weights per token."""
    if op is linear_cross_entropy_sum:
        total, loss = op(hidden, weight, target, upstream, options=options, impl=impl)
        assert not loss.requires_grad
        torch.testing.assert_close(total, (loss * upstream).sum())
        return [loss, *torch.autograd.grad(total * 0.7, (hidden, weight))]
    loss = op(hidden, weight, target, options=options, impl=impl)
    return [loss, *torch.autograd.grad(loss, (hidden, weight), 0.7 * upstream)]


@pytest.mark.parametrize("op", [linear_cross_entropy, linear_cross_entropy_sum])
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("chunk_tokens", [1, 7, 23, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_linear_losses_and_gradients(op, impl, chunk_tokens, dtype):
    hidden, weight, target, upstream = linear_rows(dtype)
    options = LossOptions(vocab_size=300, z_loss=0.1, chunk_tokens=chunk_tokens)
    got = weighted(op, hidden, weight, target, upstream, options, impl)
    wide = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    _, loss = truth(wide[0] @ wide[1].T, target, options)
    logits = (wide[0] @ wide[1].T)[:, :300]
    logsumexp = logits.logsumexp(1)
    hit = logits.gather(1, target.clamp_min(0)[:, None]).squeeze(1)
    loss = (logsumexp - hit + 0.1 * logsumexp.square()).where(target != -100, 0.0)
    want = [loss, *torch.autograd.grad(loss, wide, 0.7 * upstream.double())]
    for g, w, bf16_limit in zip(got, want, (2e-2, 2e-2, 2e-2), strict=True):
        limit = 2e-6 if dtype == torch.float32 else bf16_limit
        assert ((g.double() - w).abs().max() / w.abs().max()).item() <= limit
    assert got[0].dtype == torch.float32
    assert not got[2][300:].any(), "padding columns have no gradient"


def test_sum_of_many_chunks_is_kept_in_float32():
    """The weight's gradient is summed wide over the chunks and rounded once: bf16 sums would lose a bit
    each."""
    hidden, weight, target, upstream = linear_rows(torch.bfloat16, tokens=64)
    options = LossOptions(vocab_size=300, chunk_tokens=1)
    whole = LossOptions(vocab_size=300, chunk_tokens=64)
    for op in (linear_cross_entropy, linear_cross_entropy_sum):
        by_one = weighted(op, hidden, weight, target, upstream, options, "reference")[2]
        at_once = weighted(op, hidden, weight, target, upstream, whole, "reference")[2]
        differ = (by_one != at_once).float().mean().item()
        assert differ < 0.01, "float32 sums differ in their last bit at most, which bf16 hides"


class MainGrad:
    """A weight as megatron-core's DistributedDataParallel leaves it."""

    def __init__(self, dtype=torch.bfloat16):
        self.hidden, self.weight, self.target, self.upstream = linear_rows(dtype)
        self.weight.main_grad = torch.ones(self.weight.shape)
        self.weight.grad_added_to_main_grad = False

    def run(self, op, scale=1.0):
        options = LossOptions(vocab_size=300, chunk_tokens=7)
        if op is linear_cross_entropy_sum:
            return scale * op(self.hidden, self.weight, self.target, self.upstream, options=options)[0]
        return scale * (op(self.hidden, self.weight, self.target, options=options) * self.upstream).sum()


@pytest.mark.parametrize("op", [linear_cross_entropy, linear_cross_entropy_sum])
def test_the_weight_gradient_joins_main_grad_once(op):
    case = MainGrad(torch.float32)
    plain = linear_rows(torch.float32)
    options = LossOptions(vocab_size=300)
    want = weighted(linear_cross_entropy, *plain, options, "reference")[2] / 0.7
    with torch.no_grad():
        case.run(op)  # evaluation
    case.run(op)  # a forward whose backward never comes
    assert not case.weight.grad_added_to_main_grad
    torch.testing.assert_close(case.weight.main_grad, torch.ones(case.weight.shape))
    recomputed = torch.utils.checkpoint.checkpoint(lambda: case.run(op, scale=3.0), use_reentrant=False)
    recomputed.backward()
    assert case.weight.grad_added_to_main_grad
    torch.testing.assert_close(case.weight.main_grad, 1 + 3 * want, rtol=1e-5, atol=1e-5)
    case.run(op).backward()  # the next micro-batch adds
    torch.testing.assert_close(case.weight.main_grad, 1 + 4 * want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", [linear_cross_entropy, linear_cross_entropy_sum])
def test_another_gradient_of_a_tied_weight_is_not_spoilt(op):
    """Core adds weight.grad to main_grad too where a weight is tied, so ours must be zero in it."""
    case = MainGrad()
    (case.run(op) + case.weight.sum()).backward()
    assert torch.equal(case.weight.grad, torch.ones_like(case.weight))


@pytest.mark.parametrize("op", [linear_cross_entropy, linear_cross_entropy_sum])
@pytest.mark.parametrize("impl", IMPLS)
def test_all_rows_ignored_gives_zero(op, impl):
    hidden, weight, target, upstream = linear_rows(torch.bfloat16)
    got = weighted(op, hidden, weight, torch.full_like(target, -100), upstream, LossOptions(z_loss=0.1), impl)
    assert not any(t.any() for t in got)


@pytest.mark.parametrize("op", [linear_cross_entropy, linear_cross_entropy_sum])
def test_a_frozen_weight_costs_no_product(op, monkeypatch):
    frozen = MainGrad()
    frozen.weight.requires_grad_(False)
    products = []
    monkeypatch.setattr(linear, "accumulate_", lambda *tensors: products.append(tensors))
    (gradient,) = torch.autograd.grad(frozen.run(op), frozen.hidden)
    assert gradient.isfinite().all()
    assert not products


@pytest.mark.parametrize(
    ("held", "ranks_before", "vocab_size", "first", "valid"),
    [(10, 0, None, 0, 10), (10, 0, 7, 0, 7), (10, 0, 99, 0, 10)],
)
def test_columns_of_one_rank(held, ranks_before, vocab_size, first, valid):
    columns = Columns.of(held, None, vocab_size)
    assert (columns.first, columns.valid, columns.vocab_size) == (first, valid, min(vocab_size or 10, 10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": torch.zeros(5, dtype=torch.int64)}, "target: got shape"),
        ({"target": torch.zeros(23)}, "target: got torch.float32, expected int64"),
        ({"weight": torch.zeros(330, 41)}, "weight: got shape"),
        ({"weight": torch.zeros(330, 40, dtype=torch.bfloat16)}, "weight: got torch.bfloat16"),
        ({"token_weight": torch.zeros(5)}, "token_weight: got shape"),
        ({"token_weight": torch.zeros(23, requires_grad=True)}, "token_weight: requires a gradient"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change, message):
    hidden, weight, target, upstream = linear_rows(torch.float32)
    given = {"hidden": hidden, "weight": weight, "target": target, "token_weight": upstream} | change
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy_sum(**given)


def test_logits_whose_rows_overlap_are_refused():
    logits = torch.randn(1, 40).expand(4, 40)
    with pytest.raises(ValueError, match="rows apart; use"):
        cross_entropy(logits, torch.zeros(4, dtype=torch.int64), impl="triton")


@pytest.mark.parametrize("options", [{"vocab_size": 0}, {"chunk_tokens": 0}])
def test_options_out_of_range_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}: got 0"):
        LossOptions(**options)
