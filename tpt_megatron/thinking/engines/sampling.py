"""Choosing the next token: temperature first, then top-p, the order of every serving engine."""

import torch
from torch import Tensor

NUCLEUS_GUESS = 256  # a trained model's nucleus is far smaller; topk of 256 costs a tenth of a sort of 150k


def sample_tokens(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> Tensor:
    """One id per row, by inverting the row's distribution at its uniform number; -1 for a row with a NaN.

    Args: logits [rows, vocab] of any float type; uniforms [rows] float64 in [0, 1); temperature 0 is greedy.
    Returns ids [rows] int64. A row's id depends on its own logits and number only, never on its neighbours.
    """
    logits = logits.float()
    peak, best = logits.max(dim=-1, keepdim=True)  # [rows, 1]
    if temperature == 0:
        return torch.where(peak.isnan(), -1, best).squeeze(-1)
    probabilities = torch.softmax((logits - peak) / temperature, dim=-1)  # [rows, vocab]
    if top_p < 1:
        probabilities = probabilities * (probabilities >= nucleus_floor(probabilities, top_p))
    # In id order, not in probability order: rounding noise in the logits then moves the borders by
    # about 1e-7 and cannot swap two tokens of nearly the same probability.
    cumulative = probabilities.double().cumsum(dim=-1)
    total = cumulative[:, -1:]
    target = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    ids = torch.searchsorted(cumulative, target, right=True)  # the first id whose sum exceeds the target
    return torch.where(total.isfinite(), ids, -1).squeeze(-1)


def nucleus_floor(probabilities: Tensor, top_p: float) -> Tensor:
    """The smallest probability in each row's nucleus: the fewest top tokens whose sum reaches top_p.

    Args: probabilities [rows, vocab]. Returns [rows, 1].
    """
    vocab_size = probabilities.shape[-1]
    head = probabilities.topk(min(NUCLEUS_GUESS, vocab_size), dim=-1).values
    floor, reached = _floor_of_sorted(head, top_p)
    if head.shape[-1] < vocab_size and not bool(reached.all()):
        wide = (~reached).nonzero().squeeze(-1)
        tail = probabilities[wide].sort(dim=-1, descending=True).values
        floor[wide] = _floor_of_sorted(tail, top_p)[0]
    return floor


def _floor_of_sorted(descending: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The floor [rows, 1] and whether the given columns reach top_p at all [rows]."""
    before = (descending.double().cumsum(dim=-1) < top_p).sum(dim=-1, keepdim=True)
    last = descending.shape[-1] - 1
    return descending.gather(-1, before.clamp(max=last)), (before <= last).squeeze(-1)
