"""One rank of a vocabulary split over the world: every loss op against the whole one."""

import sys

import torch
import torch.distributed as dist
from tpt_kernels import LossOptions, cross_entropy, linear_cross_entropy, linear_cross_entropy_sum
from tpt_kernels.testing import install_interpreter

TOKENS, WIDTH, COLUMNS, VOCAB_SIZE = 21, 24, 48, 37  # of 4 ranks the last holds padding alone


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator)
    weight = torch.randn(COLUMNS, WIDTH, generator=generator)
    target = torch.randint(0, VOCAB_SIZE, (TOKENS,), generator=generator)
    target[::6] = -100
    return hidden, weight, target, torch.randn(TOKENS, generator=generator)


def losses_and_gradients(op, weight, group, impl):
    """Loss of each row and the gradients of hidden and of the given columns under weights per token."""
    hidden, _, target, upstream = inputs()
    hidden.requires_grad_()
    weight = weight.clone().requires_grad_()
    options = LossOptions(vocab_size=VOCAB_SIZE, z_loss=0.1, chunk_tokens=8)
    named = {"group": group, "options": options, "impl": impl}
    if op is linear_cross_entropy_sum:
        total, loss = op(hidden, weight, target, upstream, **named)
    else:
        rows = (hidden @ weight.T,) if op is cross_entropy else (hidden, weight)
        loss = op(*rows, target, **named)
        total = (loss * upstream).sum()
    return loss.detach(), *torch.autograd.grad(total, (hidden, weight))


def assert_equal(got: torch.Tensor, want: torch.Tensor, what: str) -> None:
    """Within relative 1e-6 of the largest, plus 2 ulp of each."""
    limit = 1e-6 * want.abs().max() + 2 * 2.0**-23 * want.abs()
    worst = ((got - want).abs() - limit).max().item()
    assert worst <= 0, f"{what}: {worst:.2e} beyond the limit"


def check(group: dist.ProcessGroup) -> None:
    """Every op and implementation, its vocabulary split over the group's ranks."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    mine = slice(rank * COLUMNS // ranks, (rank + 1) * COLUMNS // ranks)
    _, weight, _, _ = inputs()
    for op in (cross_entropy, linear_cross_entropy, linear_cross_entropy_sum):
        for impl in ("triton", "reference"):
            want = losses_and_gradients(op, weight, None, impl)
            loss, part, weight_gradient = losses_and_gradients(op, weight[mine], group, impl)
            dist.all_reduce(part, group=group)  # whoever gathered the hidden states sums their gradient
            what = f"{op.__name__} by {impl} on rank {rank} of {ranks}"
            assert_equal(loss, want[0], f"{what}: loss")
            assert_equal(part, want[1], f"{what}: gradient of hidden")
            assert_equal(weight_gradient, want[2][mine], f"{what}: gradient of the weight")
    print(f"rank {rank} of {ranks} agrees", flush=True)


def main() -> None:
    """In a world of 4, groups of 1, 2 and 4 ranks; the first ranks of a group are not the world's first."""
    install_interpreter()
    dist.init_process_group("gloo")
    for ranks in (1, 2, 4):
        groups = [dist.new_group(list(range(first, first + ranks))) for first in range(0, 4, ranks)]
        check(groups[dist.get_rank() // ranks])
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
