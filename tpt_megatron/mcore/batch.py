"""One micro-batch as the model takes it: samples laid end to end in one row of tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A row of `tokens`; documents (or whole samples) are bounded by cu_seqlens, from 0 to the last token."""

    tokens: Tensor  # [tokens] int64; int32 until `to`, which halves what is copied to the device
    labels: Tensor  # [tokens] likewise, -100: no loss
    positions: Tensor  # [tokens] likewise, within the document
    cu_seqlens: Tensor  # [documents + 1] int32
    max_seqlen: int
    thinking: Tensor  # [tokens] bool: the label belongs to a thought

    def to(self, device: torch.device) -> "Batch":
        return Batch(
            tokens=self.tokens.to(device, non_blocking=True).long(),
            labels=self.labels.to(device, non_blocking=True).long(),
            positions=self.positions.to(device, non_blocking=True).long(),
            cu_seqlens=self.cu_seqlens.to(device, non_blocking=True),
            max_seqlen=self.max_seqlen,
            thinking=self.thinking.to(device, non_blocking=True),
        )
