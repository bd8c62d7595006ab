"""The linear cross-entropies at the size of an 8B model on tensors without data: what they allocate."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tpt_kernels.loss import linear
from tpt_kernels.loss.rows import Rows

HIDDEN, VOCABULARY, CHUNK = 4096, 128_256, 2048
BOUND = 0.8e9  # bytes beyond the gradients


class Allocated(TorchDispatchMode):
    """Bytes of the storages made under it: alive, and the most there were."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.alive, self.peak = 0, 0
        self.seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = op(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.alive += size
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.alive -= size


@pytest.fixture(autouse=True)
def rows_without_work(monkeypatch):
    """In place of Triton's row functions, which cannot run without data: they allocate [3, tokens] alone."""
    rows = Rows(
        statistics=lambda logits, target, columns: logits.new_empty(3, len(logits), dtype=torch.float32),
        gradient_=lambda *arguments: None,
    )
    monkeypatch.setattr(linear, "rows_of", lambda impl, sample: rows)


def inputs(tokens: int) -> list[Tensor]:
    hidden = torch.empty(tokens, HIDDEN, dtype=torch.bfloat16, device="cuda")
    weight = torch.empty(VOCABULARY, HIDDEN, dtype=torch.bfloat16, device="cuda")
    target = torch.empty(tokens, dtype=torch.int64, device="cuda")
    return [hidden, weight, target, torch.empty(tokens, device="cuda")]


@pytest.mark.parametrize("tokens", [8192, 65536])
def test_sum_holds_one_chunk_beyond_its_gradients(tokens):
    with FakeTensorMode():
        given = inputs(tokens)
        with Allocated(given) as allocated:
            results = linear.linear_loss_and_gradients._init_fn(
                *given, True, None, None, -100, 0.1, CHUNK, "triton"
            )
        gradients = sum(result.nbytes for result in results[1:])
    assert CHUNK * VOCABULARY * 2 <= allocated.peak - gradients <= BOUND


def test_the_bound_holds_where_the_library_cannot_accumulate(monkeypatch):
    """A torch without a float32 sum of bf16 products: the product is cut into slices."""

    def refuse(*arguments, **named):
        raise RuntimeError("out_dtype is not supported here")

    monkeypatch.setattr(torch, "addmm", refuse)
    test_sum_holds_one_chunk_beyond_its_gradients(8192)


def test_another_failure_of_the_library_is_not_hidden(monkeypatch):
    def fail(*arguments, **named):
        raise RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED")

    monkeypatch.setattr(torch, "addmm", fail)
    with pytest.raises(RuntimeError, match="EXECUTION_FAILED"):
        test_sum_holds_one_chunk_beyond_its_gradients(8192)


@pytest.mark.parametrize("tokens", [8192, 65536])
def test_recompute_holds_one_chunk_beyond_its_gradients(tokens):
    with FakeTensorMode():
        hidden, weight, target, upstream = inputs(tokens)
        total = torch.empty(weight.shape, device="cuda")
        statistics = torch.empty(3, tokens, device="cuda")
        with Allocated([hidden, weight, target, upstream, total, statistics]) as allocated:
            gradient = linear.linear_gradients_._init_fn(
                hidden, weight, target, statistics, upstream, total, None, None, -100, 0.1, CHUNK, "triton"
            )
    assert CHUNK * VOCABULARY * 2 <= allocated.peak - gradient.nbytes <= BOUND
