"""Attention: ours and every peer, one small function each. All take and give [tokens, heads, dim].

A peer is imported by its function alone; one that is not installed raises ImportError, which is its reason.
"""

import inspect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from clock import Clock
from shapes import AttentionShape
from torch import Tensor
from trial import Contender, PeerRefusalError, Ready, Trial, Work, first_before


@dataclass(frozen=True)
class AttentionInputs:
    """Leaves query [tokens, heads, dim], key, value [tokens, kv_heads, dim]; cu_seqlens [documents + 1]."""

    shape: AttentionShape
    query: Tensor
    key: Tensor
    value: Tensor
    cu_seqlens: Tensor
    upstream: Tensor
    clock: Clock


type AttentionPeer = Callable[[AttentionInputs], Ready]


def attention_inputs(shape: AttentionShape, clock: Clock) -> AttentionInputs:
    random = torch.Generator(clock.device).manual_seed(0)

    def rows(heads: int) -> Tensor:
        size = (shape.tokens, heads, shape.dim)
        return torch.randn(size, generator=random, device=clock.device, dtype=shape.dtype)

    query, key, value = (rows(n).requires_grad_() for n in (shape.heads, shape.kv_heads, shape.kv_heads))
    bounds = torch.tensor([0, *itertools.accumulate(shape.lengths)], dtype=torch.int32, device=clock.device)
    return AttentionInputs(shape, query, key, value, bounds, rows(shape.heads), clock)


def attention_trial(inputs: AttentionInputs) -> Trial:
    shape = inputs.shape
    return Trial(
        "attention", shape.name, (inputs.query, inputs.key, inputs.value), inputs.upstream, lambda: None,
        {"forward": Work(shape.forward_flop, "TFLOP/s"), "backward": Work(shape.backward_flop, "TFLOP/s")},
    )  # fmt: skip


def attention_contenders(inputs: AttentionInputs, impls: tuple[str, ...]) -> dict[str, Contender]:
    """torch's flash, whose norms the others are held to, then ours by impl, then the other peers."""
    mine: dict[str, Contender] = {f"ours {impl}": partial(ours, inputs, impl=impl) for impl in impls}
    return first_before(mine, {name: partial(peer, inputs) for name, peer in ATTENTION_PEERS.items()})


def ours(x: AttentionInputs, *, impl: str) -> Ready:
    from tpt_kernels import attention

    return Ready(
        lambda: attention(
            x.query, x.key, x.value, cu_seqlens=x.cu_seqlens, max_seqlen=x.shape.longest, impl=impl
        )
    )


def torch_sdpa(x: AttentionInputs, *, backend: str) -> Ready:
    """scaled_dot_product_attention held to one backend; it knows no documents, so one call a document."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    chosen = getattr(SDPBackend, backend)
    # The memory-efficient backend takes no grouped heads: keys and values are repeated, which is its cost.
    groups = x.shape.heads // x.shape.kv_heads if backend == "EFFICIENT_ATTENTION" else 1
    bounds = list(itertools.pairwise([0, *itertools.accumulate(x.shape.lengths)]))

    def document(begin: int, end: int) -> Tensor:
        q, k, v = (
            t[begin:end].transpose(0, 1)[None] for t in (x.query, x.key, x.value)
        )  # [1, heads, n, dim]
        if groups > 1:
            k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
        grouped = q.shape[1] != k.shape[1]
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        return out[0].transpose(0, 1)

    def forward() -> Tensor:
        with sdpa_kernel(chosen):
            parts = [document(begin, end) for begin, end in bounds]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return Ready(forward)


def torch_varlen(x: AttentionInputs) -> Ready:
    """torch.nn.attention.varlen: its flash kernel over cu_seqlens; CUDA and ROCm only."""
    if x.clock.device.type != "cuda":
        raise PeerRefusalError("torch.nn.attention.varlen has no kernel for the CPU")
    varlen = import_module("torch.nn.attention.varlen").varlen_attn
    known = inspect.signature(varlen).parameters
    options: dict[str, Any] = {}
    # torch 2.10 says is_causal; later ones give the window, (-1, 0) for causal.
    options |= {"is_causal": True} if "is_causal" in known else {"window_size": (-1, 0)}
    if "enable_gqa" in known:
        options["enable_gqa"] = x.shape.heads != x.shape.kv_heads
    bounds, longest = x.cu_seqlens, x.shape.longest
    return Ready(lambda: varlen(x.query, x.key, x.value, bounds, bounds, longest, longest, **options))


def torch_flex(x: AttentionInputs) -> Ready:
    """FlexAttention, compiled, with a block mask of the documents; making the mask is timed apart."""
    if x.clock.device.type != "cuda":
        raise PeerRefusalError("FlexAttention is compiled for a GPU; on the CPU it has no backward")
    flex: Any = import_module("torch.nn.attention.flex_attention")
    tokens, device = x.shape.tokens, x.clock.device
    document = torch.repeat_interleave(torch.tensor(x.shape.lengths, device=device))  # [tokens]

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (document[query] == document[key]) & (query >= key)

    def make_mask() -> Any:
        return flex.create_block_mask(visible, None, None, tokens, tokens, device=str(device), _compile=True)

    # A new mask function recompiles; past 8 recompilations torch runs it uncompiled, with whole scores.
    torch.compiler.reset()  # type: ignore[no-untyped-call]
    mask = make_mask()
    setup_ms = x.clock.wall_ms(make_mask)
    compiled: Any = torch.compile(flex.flex_attention)
    grouped = x.shape.heads != x.shape.kv_heads

    def forward() -> Tensor:
        rows = (t.transpose(0, 1)[None] for t in (x.query, x.key, x.value))  # [1, heads, tokens, dim]
        out: Tensor = compiled(*rows, block_mask=mask, enable_gqa=grouped)
        return out[0].transpose(0, 1)

    return Ready(forward, setup_ms)


def flash_attention(x: AttentionInputs, *, module: str, **options: bool) -> Ready:
    """The varlen function that flash-attn 2, flash-attn 3 and AITER share, keyword for keyword."""
    varlen = import_module(module).flash_attn_varlen_func

    def forward() -> Tensor:
        out = varlen(
            x.query, x.key, x.value, cu_seqlens_q=x.cu_seqlens, cu_seqlens_k=x.cu_seqlens,
            max_seqlen_q=x.shape.longest, max_seqlen_k=x.shape.longest, causal=True, **options,
        )  # fmt: skip
        result: Tensor = out[0] if isinstance(out, tuple) else out  # some versions add the logsumexp
        return result

    return Ready(forward)


ATTENTION_PEERS: Mapping[str, AttentionPeer] = {
    "torch flash": partial(torch_sdpa, backend="FLASH_ATTENTION"),
    "torch cudnn": partial(torch_sdpa, backend="CUDNN_ATTENTION"),
    "torch efficient": partial(torch_sdpa, backend="EFFICIENT_ATTENTION"),
    "torch math": partial(torch_sdpa, backend="MATH"),
    "torch varlen": torch_varlen,
    "flash-attn 2": partial(flash_attention, module="flash_attn"),
    "flash-attn 2 deterministic": partial(flash_attention, module="flash_attn", deterministic=True),
    "flash-attn 3": partial(flash_attention, module="flash_attn_interface"),
    "flash-attn 3 deterministic": partial(flash_attention, module="flash_attn_interface", deterministic=True),
    # return_lse: without it AITER keeps nothing for a backward.
    "aiter": partial(flash_attention, module="aiter", deterministic=False, return_lse=True),
    "aiter deterministic": partial(flash_attention, module="aiter", deterministic=True, return_lse=True),
    "torch flex": torch_flex,
}
