"""torch sees the ops as its own: opcheck, and torch.compile traces past each without a graph break."""

import pytest
import torch
import torch.distributed as dist
from cases import bounds, heads
from tpt_kernels import (
    LossOptions,
    attention,
    cross_entropy,
    linear_cross_entropy,
    linear_cross_entropy_sum,
)
from tpt_kernels.flash.op import attention_backward, attention_forward
from tpt_kernels.flash.ranges import visible_ranges
from tpt_kernels.loss import cross_entropy as rows_op
from tpt_kernels.loss import linear as linear_op

OPTIONS = LossOptions(vocab_size=45, z_loss=0.1, chunk_tokens=4)
OPS = [cross_entropy, linear_cross_entropy, linear_cross_entropy_sum]
BACKENDS = ["aot_eager", "inductor"]


def linear_inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 16, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(48, 16, generator=generator).to(dtype).requires_grad_()
    target = torch.randint(0, 45, (9,), generator=generator)
    target[2] = -100
    return hidden, weight, target, torch.rand(9, generator=generator)


@pytest.fixture(autouse=True, scope="module")
def world_of_one():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def loss_of(op, target, upstream, impl, group):
    """The op's weighted sum as a function of hidden and weight."""
    named = {"options": OPTIONS, "impl": impl, "group": group}

    def function(hidden, weight):
        if op is linear_cross_entropy_sum:
            return op(hidden, weight, target, upstream, **named)[0]
        rows = (hidden @ weight.T,) if op is cross_entropy else (hidden, weight)
        return (op(*rows, target, **named) * upstream).sum()

    return function


def attention_arguments():
    given = heads(20, 20, 2, 2, 16, torch.float32, seed=0)
    query, key, value = (t.detach() for t in given.inputs)
    ranges = visible_ranges(bounds([13, 7]), 20, None)
    out, logsumexp = attention_forward(query, key, value, ranges.key_begin, ranges.key_end, 0.25)
    backward = (query, key, value, out, logsumexp, given.upstream, *ranges, 0.25)
    return (query, key, value, ranges.key_begin, ranges.key_end, 0.25), backward


def loss_arguments(impl):
    hidden, weight, target, upstream = (t.detach() for t in linear_inputs())
    logits = hidden @ weight.T
    _, statistics = rows_op.row_losses(logits, target, None, 45, -100, 0.1, impl)
    total = torch.zeros_like(weight)
    return {
        rows_op.row_losses: (logits, target, None, 45, -100, 0.1, impl),
        rows_op.logits_gradient_: (logits, statistics, target, upstream, None, 45, -100, 0.1, impl),
        linear_op.linear_row_losses: (hidden, weight, target, None, 45, -100, 0.1, 4, impl),
        linear_op.linear_gradients_: (
            hidden, weight, target, statistics, upstream, total, None, 45, -100, 0.1, 4, impl
        ),
        linear_op.linear_loss_and_gradients: (
            hidden, weight, target, upstream, True, None, 45, -100, 0.1, 4, impl
        ),
    }  # fmt: skip


def test_opcheck_of_attention():
    forward, backward = attention_arguments()
    torch.library.opcheck(attention_forward, forward)
    torch.library.opcheck(attention_backward, backward)


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_opcheck_of_the_losses(impl):
    for op, arguments in loss_arguments(impl).items():
        torch.library.opcheck(op, arguments)


def assert_compiles(function, inputs, backend):
    """Whole graph, with the eager result and gradients."""
    torch._dynamo.reset()
    results = []
    for run in (function, torch.compile(function, fullgraph=True, backend=backend)):
        leaves = [t.detach().clone().requires_grad_() for t in inputs]
        out = run(*leaves)
        results.append([out.detach(), *torch.autograd.grad(out, leaves)])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("impl", ["triton", "auto"])
def test_attention_compiles_whole(impl, backend):
    given = heads(20, 20, 2, 2, 16, torch.float32, seed=0)

    def function(query, key, value):
        out = attention(query, key, value, cu_seqlens=bounds([13, 7]), max_seqlen=13, impl=impl)
        return (out * given.upstream).sum()

    assert_compiles(function, given.inputs, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("impl", ["triton", "auto"])
@pytest.mark.parametrize("op", OPS)
def test_losses_compile_whole(op, impl, backend):
    """With the process group that the model always passes."""
    hidden, weight, target, upstream = linear_inputs()
    assert_compiles(loss_of(op, target, upstream, impl, dist.group.WORLD), (hidden, weight), backend)


@pytest.mark.parametrize("op", OPS[1:])
def test_main_grad_under_compile(op):
    """Marking the weight breaks the graph (functions.py says so); the gradients are those of eager."""
    torch._dynamo.reset()
    results = []
    for compiled in (False, True):
        hidden, weight, target, upstream = linear_inputs()
        weight.main_grad, weight.grad_added_to_main_grad = torch.zeros(weight.shape), False
        function = loss_of(op, target, upstream, "auto", None)
        run = torch.compile(function, backend="aot_eager") if compiled else function
        run(hidden, weight).backward()
        assert weight.grad_added_to_main_grad
        results.append((hidden.grad, weight.main_grad))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)
