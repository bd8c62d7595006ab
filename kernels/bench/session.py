"""A session of measuring: the chosen ops at the chosen shapes on one device, under one deadline."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from clock import Ceilings, Clock, Deadline, measure_ceilings
from peers_attention import attention_contenders, attention_inputs, attention_trial
from peers_loss import (
    LogitsPeer,
    linear_contenders,
    linear_inputs,
    linear_trial,
    logits_contenders,
    logits_inputs,
    logits_trial,
)
from shapes import attention_shapes, loss_shapes
from trial import Contender, Measurement, Trial, explain, refusals, run_trial

OPS = ("attention", "cross_entropy", "linear_cross_entropy", "linear_cross_entropy_sum")


@dataclass(frozen=True)
class Session:
    """What to measure. `more_logits_peers` are peers of cross_entropy that this folder may not import."""

    device: torch.device
    ops: Sequence[str]
    shapes: Sequence[str]
    budget_ms: float
    deadline: Deadline
    more_logits_peers: Mapping[str, LogitsPeer] = field(default_factory=dict)

    @property
    def impls(self) -> tuple[str, ...]:
        """Ours: Triton and what auto picks; on a CPU Triton only interprets, so the reference stands in."""
        return ("triton", "auto") if self.device.type == "cuda" else ("auto", "reference")


def shape_names(device: torch.device) -> list[str]:
    """Every shape's name, the most telling first: each packed one beside the whole one of its size."""
    return list(attention_shapes(device) | loss_shapes(device))


def measure(session: Session, say: Callable[[str], object]) -> tuple[Ceilings, list[Measurement]]:
    """The ceilings, then every op at every shape; `say` is told of each op and shape as it begins."""
    clock = Clock(session.device, session.budget_ms)
    ceilings = measure_ceilings(clock)
    measurements: list[Measurement] = []
    for shape in session.shapes:
        for op in session.ops:
            if op not in _at(session, shape):
                continue
            say(f"{op} {shape}")
            measurements += _measure_one(session, op, shape, clock, ceilings)
            gc.collect()  # a failed contender's error holds its tensors in a cycle of frames
    return ceilings, measurements


def _at(session: Session, shape: str) -> Iterator[str]:
    """The ops that have a shape of this name."""
    if shape in attention_shapes(session.device):
        yield "attention"
    if shape in loss_shapes(session.device):
        yield from OPS[1:]


def _measure_one(
    session: Session, op: str, shape: str, clock: Clock, ceilings: Ceilings
) -> list[Measurement]:
    if session.deadline.passed:
        return [Measurement(op, "all", shape, "all", reason=session.deadline.reason)]
    try:
        trial, contenders = _prepare(session, op, shape, clock)
    except refusals() as error:  # the inputs alone are too large for this device
        return [Measurement(op, "all", shape, "all", reason=explain(error))]
    return run_trial(trial, contenders, clock, ceilings, session.deadline)


def _prepare(session: Session, op: str, shape: str, clock: Clock) -> tuple[Trial, dict[str, Contender]]:
    if op == "attention":
        x = attention_inputs(attention_shapes(session.device)[shape], clock)
        return attention_trial(x), attention_contenders(x, session.impls)
    size = loss_shapes(session.device)[shape]
    if op == "cross_entropy":
        y = logits_inputs(size, session.device)
        return logits_trial(y), logits_contenders(y, session.impls, session.more_logits_peers)
    z = linear_inputs(size, session.device)
    return linear_trial(z, op), linear_contenders(z, session.impls, op)
