"""Our attention in megatron-core's `core_attention` seat, rotary embedding included.

Core's rotary embedding for packed rows reads cu_seqlens on the host and ignores positions; so the layers are
given none, and the rotation is done here by a position tensor of ours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor


@dataclass
class PackedRow(PackedSeqParams):  # type: ignore[misc]
    """Documents one after another in a row of tokens, as every layer of a stage sees them."""

    cosine: Tensor | None = None  # [tokens, dim / 2] float32
    sine: Tensor | None = None


def pack_row(
    cu_seqlens: Tensor, max_seqlen: int, positions: Tensor, kv_channels: int, theta: float
) -> PackedRow:
    """cu_seqlens [documents + 1] int32; positions [tokens], each token's place in its document."""
    cosine, sine = rotary_angles(positions, kv_channels, theta)
    return PackedRow(
        qkv_format="thd", cu_seqlens_q=cu_seqlens, cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=max_seqlen, max_seqlen_kv=max_seqlen, cosine=cosine, sine=sine,
    )  # fmt: skip


def rotary_angles(positions: Tensor, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position * theta^(-2i/dim) (Su et al. 2021), [tokens, dim / 2] float32 each."""
    exponent = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim
    angle = torch.outer(positions.float(), 1.0 / theta**exponent)
    return angle.cos(), angle.sin()


class CoreAttention(torch.nn.Module):
    """`attention` has the signature of tpt_kernels.attention, `rotary` that of fused.rotary."""

    def __init__(
        self,
        attention: Callable[..., Tensor],
        rotary: Callable[..., Tensor],
        softmax_scale: float | None = None,
        **unused: object,
    ) -> None:
        super().__init__()
        self.attention, self.rotary, self.scale = attention, rotary, softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        *,
        packed_seq_params: PackedRow,
        **unused: object,
    ) -> Tensor:
        """query [tokens, heads / tensor, dim], key and value alike -> [tokens, heads / tensor * dim]."""
        row = packed_seq_params
        assert row.cosine is not None
        assert row.sine is not None
        out = self.attention(
            self.rotary(query, row.cosine, row.sine), self.rotary(key, row.cosine, row.sine), value,
            cu_seqlens=row.cu_seqlens_q, max_seqlen=row.max_seqlen_q, scale=self.scale,
        )  # fmt: skip
        return out.flatten(1)
