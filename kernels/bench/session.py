"""A session of measuring: the chosen ops at the chosen shapes on one device, under one deadline."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

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
from trial import Contender, Measurement, PeerRefusalError, Ready, Trial, explain, refusals, run_trial

OPS = ("attention", "cross_entropy", "linear_cross_entropy", "linear_cross_entropy_sum")
LAST = ("torch flex",)  # after all shapes of the others: it compiles for half a minute at each
COMPILED = ("torch flex", "megatron-core", "quack", "cce", "cce exact")  # for seconds or more at each shape


@dataclass(frozen=True)
class Session:
    """What to measure.

    more_logits_peers: peers of cross_entropy that this folder may not import; compiling: after it no peer of
    COMPILED is begun; left_out: the reason for each contender that is not to be begun at all.
    """

    device: torch.device
    ops: Sequence[str]
    shapes: Sequence[str]
    budget_ms: float
    deadline: Deadline
    more_logits_peers: Mapping[str, LogitsPeer] = field(default_factory=dict)
    compiling: Deadline | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def impls(self) -> tuple[str, ...]:
        """Ours: Triton and what auto picks; on a CPU Triton only interprets, so the reference stands in."""
        return ("triton", "auto") if self.device.type == "cuda" else ("auto", "reference")


def shape_names(device: torch.device) -> list[str]:
    """Every shape's name, the most telling first: each packed one beside the whole one of its size."""
    return list(attention_shapes(device) | loss_shapes(device))


def measure(
    session: Session,
    say: Callable[[str], object],
    keep: Callable[[Ceilings, Sequence[Measurement]], object],
) -> tuple[Ceilings, list[Measurement]]:
    """The ceilings, then every op at every shape; `say` is told of each op and shape as it begins.

    keep: given all that is known, at first and after each op and shape; a hang would lose the rest alone.
    """  # fmt: skip
    clock = Clock(session.device, session.budget_ms)
    ceilings = measure_ceilings(clock)
    measurements: list[Measurement] = []
    keep(ceilings, measurements)
    todo = [(op, shape) for shape in session.shapes for op in session.ops if op in _at(session, shape)]
    norms: dict[tuple[str, str], list[float]] = {where: [] for where in todo}
    late = [(op, shape) for op, shape in todo if op == "attention"]
    lost: str | None = None
    for last, (op, shape) in [*((False, where) for where in todo), *((True, where) for where in late)]:
        say(f"{op} {shape}" + (", the last peers" if last else ""))
        if reason := lost or (session.deadline.reason if session.deadline.passed else None):
            names = LAST if last else ("all",)
            measurements += [Measurement(op, "all", shape, name, reason=reason) for name in names]
        else:
            measurements += _measure_one(session, op, shape, clock, ceilings, norms[op, shape], last)
            gc.collect()  # a failed contender's error holds its tensors in a cycle of frames
            lost = clock.lost()
        keep(ceilings, measurements)
    return ceilings, measurements


def _at(session: Session, shape: str) -> Iterator[str]:
    """The ops that have a shape of this name."""
    if shape in attention_shapes(session.device):
        yield "attention"
    if shape in loss_shapes(session.device):
        yield from OPS[1:]


def _measure_one(
    session: Session, op: str, shape: str, clock: Clock, ceilings: Ceilings, norms: list[float], last: bool
) -> list[Measurement]:
    """The contenders of LAST, or all others."""
    try:
        trial, prepared = _prepare(session, op, shape, clock)
    except refusals() as error:  # the inputs alone are too large for this device
        return [Measurement(op, "all", shape, "all", reason=explain(error))]
    contenders = {
        name: partial(_permitted, session, name, contender)
        for name, contender in prepared.items() if (name in LAST) == last
    }  # fmt: skip
    return run_trial(trial, contenders, clock, ceilings, session.deadline, norms)


def _permitted(session: Session, name: str, contender: Contender) -> Ready:
    if reason := session.left_out.get(name):
        raise PeerRefusalError(reason)
    if name in COMPILED and session.compiling is not None and session.compiling.passed:
        raise PeerRefusalError(session.compiling.reason)
    return contender()


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
