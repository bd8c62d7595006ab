"""What is measured: the 8B model's shapes at 8k and 32k tokens, whole and as one rank of TP 8; and tiny ones.

Every formula of FLOP and bytes stands here, so that a figure in a table has one place to be checked.
"""

import random
from dataclasses import dataclass

import torch

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, VOCABULARY = 32, 8, 128, 4096, 128_256  # Llama 3.1 8B
DOCUMENTS, SEED = 8, 3


@dataclass(frozen=True)
class AttentionShape:
    """One row of documents; `lengths` are theirs, in tokens."""

    name: str
    lengths: tuple[int, ...]
    heads: int
    kv_heads: int
    dim: int
    dtype: torch.dtype

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def visible_pairs(self) -> int:
        """Pairs of a query and a key that it sees: n (n + 1) / 2 in a document of n tokens."""
        return sum(n * (n + 1) // 2 for n in self.lengths)

    @property
    def forward_flop(self) -> int:
        """2 products (scores, output) of 2 FLOP a multiply-add: 4 * heads * dim * visible pairs.

        Only visible pairs count, so this is the causal half; work on masked pairs makes an op slower, not
        its rate higher.
        """
        return 4 * self.heads * self.dim * self.visible_pairs

    @property
    def backward_flop(self) -> int:
        """5 products (scores again, dP, dV, dQ, dK): 10 * heads * dim * visible pairs."""
        return 10 * self.heads * self.dim * self.visible_pairs


@dataclass(frozen=True)
class LossShape:
    """`tokens` rows over this rank's `vocabulary` columns."""

    name: str
    tokens: int
    vocabulary: int
    hidden: int
    dtype: torch.dtype

    @property
    def logits_traffic(self) -> int:
        """Bytes of cross_entropy forward and backward: the logits read twice and written once."""
        return 3 * self.tokens * self.vocabulary * self.dtype.itemsize

    @property
    def linear_flop(self) -> int:
        """3 products (logits, hidden's and weight's gradient): 6 * tokens * hidden * vocabulary.

        Making the logits again in the backward is a fourth product that counts for nothing here: the rate is
        the result's FLOP a second, comparable between ops that recompute and ops that do not.
        """
        return 6 * self.tokens * self.hidden * self.vocabulary


def ragged(tokens: int, documents: int = DOCUMENTS, seed: int = SEED) -> tuple[int, ...]:
    """Lengths of `documents` documents, each at least 1, that sum to `tokens`; the same for a seed."""
    cuts = sorted(random.Random(seed).sample(range(1, tokens), documents - 1))
    return tuple(end - begin for begin, end in zip([0, *cuts], [*cuts, tokens], strict=True))


def attention_shapes(device: torch.device) -> dict[str, AttentionShape]:
    """By name, the most telling first: a run that is cut short has measured these."""
    if device.type == "cpu":
        tiny = (("tiny", (48,)), ("tiny-packed", ragged(48, documents=4)))
        return {name: AttentionShape(name, lengths, 4, 2, 16, torch.float32) for name, lengths in tiny}
    shapes = {}
    for tensor in (1, 8):
        for thousands in (8, 32):
            tokens = thousands * 1024
            for packed, lengths in (("", (tokens,)), ("-packed", ragged(tokens))):
                name = f"{thousands}k{packed}" + (f"-tp{tensor}" if tensor > 1 else "")
                heads, kv_heads = HEADS // tensor, KV_HEADS // tensor
                shapes[name] = AttentionShape(name, lengths, heads, kv_heads, HEAD_DIM, torch.bfloat16)
    return shapes


def loss_shapes(device: torch.device) -> dict[str, LossShape]:
    """By name; packing is nothing to a loss, so there is no packed shape."""
    if device.type == "cpu":
        return {"tiny": LossShape("tiny", 24, 160, 32, torch.float32)}
    shapes = {}
    for tensor in (1, 8):
        for thousands in (8, 32):
            name = f"{thousands}k" + (f"-tp{tensor}" if tensor > 1 else "")
            columns = VOCABULARY // tensor
            shapes[name] = LossShape(name, thousands * 1024, columns, HIDDEN, torch.bfloat16)
    return shapes
