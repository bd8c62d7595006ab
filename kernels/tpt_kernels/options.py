"""Options shared by the cross-entropy ops."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LossOptions:
    """How a row's loss is counted.

    vocab_size: columns from here on are padding, with probability and gradient 0; None: no padding.
    ignore_index: a row with this target has loss 0 and gradient 0.
    z_loss: adds z_loss * logsumexp^2 to a row's loss.
    chunk_tokens: rows whose logits are in memory at once in the linear ops.
    """

    vocab_size: int | None = None
    ignore_index: int = -100
    z_loss: float = 0.0
    chunk_tokens: int = 2048
