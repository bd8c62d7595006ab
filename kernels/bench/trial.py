"""One op at one shape: every contender is run, timed and weighed, and each that could not is named.

A contender is ours or a peer; it computes the same from the same tensors. Its norms are compared with those
of the first that ran, so that a fast peer that computes something else is not taken for a peer.
"""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from clock import Ceilings, Clock, Deadline
from torch import Tensor

LARGEST_DIFFERENCE = 0.02  # of a norm; a loss rounded to bf16 is off by 0.004 at most


@dataclass(frozen=True)
class Ready:
    """A contender on its inputs: `forward` gives the output or the loss; `setup_ms` was spent once before."""

    forward: Callable[[], Tensor]
    setup_ms: float | None = None


type Contender = Callable[[], Ready]


@dataclass(frozen=True)
class Work:
    """FLOP or bytes of one run, and the unit of their rate: "TFLOP/s" or "TB/s"."""

    amount: int
    unit: str

    def rate(self, milliseconds: float) -> float:
        return self.amount / milliseconds / 1e9

    def ceiling(self, ceilings: Ceilings) -> float:
        return ceilings.teraflops if self.unit == "TFLOP/s" else ceilings.terabytes


@dataclass(frozen=True)
class Trial:
    """What the contenders share.

    leaves: the tensors whose gradients are asked for; upstream: the gradient of a result of its shape (a
    scalar result has 1.0); restore: puts back what a run overwrote; work: phase -> FLOP or bytes, where a
    phase is "forward", "backward" or "both".
    """

    op: str
    shape: str
    leaves: tuple[Tensor, ...]
    upstream: Tensor
    restore: Callable[[], object]
    work: Mapping[str, Work]

    def gradients(self, result: Tensor) -> tuple[Tensor, ...]:
        upstream = self.upstream.to(result.dtype) if result.dim() else torch.ones_like(result)
        return torch.autograd.grad(result, self.leaves, upstream)


@dataclass(frozen=True)
class Measurement:
    """A line of the table. `reason` says why figures are missing, or why they do not count."""

    op: str
    phase: str
    shape: str
    contender: str
    milliseconds: float | None = None
    repeats: int | None = None
    rate: float | None = None
    unit: str | None = None
    fraction: float | None = None  # of the measured ceiling
    peak_bytes: int | None = None  # of forward and backward, beyond the inputs
    setup_ms: float | None = None
    difference: float | None = None  # largest relative difference of a norm from the first contender's
    reason: str | None = None

    @property
    def counts(self) -> bool:
        return self.milliseconds is not None and self.reason is None


class PeerRefusalError(RuntimeError):
    """A peer is here but not for this shape or device; the message is the reason."""


def refusals() -> tuple[type[BaseException], ...]:
    """What a peer may raise that is a reason, not the end of the run; a loaded package's own errors too."""
    kinds: list[type[BaseException]] = [ImportError, RuntimeError, ValueError, TypeError, AttributeError]
    kinds += [AssertionError, KeyError, IndexError, OSError, SyntaxError]
    # Exceptions that derive from Exception alone: Triton's compiler, CUTLASS' (under QuACK).
    for module, name in (("triton.errors", "TritonError"), ("cutlass.base_dsl.common", "DSLBaseError")):
        if (kind := getattr(sys.modules.get(module), name, None)) is not None:
            kinds.append(kind)
    return tuple(kinds)


def explain(error: BaseException) -> str:
    """One line: why a contender has no figure."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    if isinstance(error, ModuleNotFoundError):
        return f"not installed: {first}"
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return first if isinstance(error, PeerRefusalError) else f"refused: {type(error).__name__}: {first[:200]}"


def run_trial(
    trial: Trial, contenders: Mapping[str, Contender], clock: Clock, ceilings: Ceilings, deadline: Deadline
) -> list[Measurement]:
    """A measurement for every contender and phase, in order; after the deadline only a reason."""
    measurements: list[Measurement] = []
    norms: list[float] = []
    for name, contender in contenders.items():
        if deadline.passed:
            measurements += _failed(trial, name, {}, deadline.reason)
            continue
        measurements += _run_contender(trial, name, contender, clock, ceilings, norms)
        if clock.device.type == "cuda":
            torch.cuda.empty_cache()
    return measurements


def _run_contender(
    trial: Trial, name: str, contender: Contender, clock: Clock, ceilings: Ceilings, norms: list[float]
) -> list[Measurement]:
    """`norms` are the first contender's; the first that runs fills them."""
    done: dict[str, Measurement] = {}
    try:
        ready = contender()
        phases: dict[str, float | None] = dict.fromkeys(trial.work)
        if "forward" in phases:  # timed first: a peer without a backward still has this figure
            done["forward"] = _timed(trial, name, "forward", ready, clock, ceilings)
        trial.restore()
        result = ready.forward()
        mine = _norms(result, trial.gradients(result))
        del result
        if not norms and all(map(math.isfinite, mine)):
            norms += mine
        difference = _difference(norms or mine, mine)
        trial.restore()
        peak = clock.peak_bytes(lambda: trial.gradients(ready.forward()))
        for phase in phases:
            done[phase] = done.get(phase) or _timed(trial, name, phase, ready, clock, ceilings)
    except refusals() as error:
        return _failed(trial, name, done, explain(error))
    wrong = None
    if difference is None:
        wrong = "does not count: a norm is not finite"
    elif difference > LARGEST_DIFFERENCE:
        wrong = f"does not count: a norm differs by {difference:.1%} from the first contender's"
    return [
        Measurement(
            **(vars(done[phase]) | {"peak_bytes": peak, "difference": difference, "reason": wrong})
        )
        for phase in trial.work
    ]  # fmt: skip


def _timed(
    trial: Trial, name: str, phase: str, ready: Ready, clock: Clock, ceilings: Ceilings
) -> Measurement:
    def restored_result() -> Tensor:
        trial.restore()
        return ready.forward()

    if phase == "forward":
        timing = clock.median(trial.restore, lambda _: ready.forward())
    elif phase == "backward":
        timing = clock.median(restored_result, trial.gradients)
    else:
        timing = clock.median(trial.restore, lambda _: trial.gradients(ready.forward()))
    work = trial.work[phase]
    rate = work.rate(timing.milliseconds)
    return Measurement(
        trial.op, phase, trial.shape, name, timing.milliseconds, timing.repeats, rate, work.unit,
        fraction=rate / work.ceiling(ceilings), setup_ms=ready.setup_ms,
    )  # fmt: skip


def _failed(trial: Trial, name: str, done: Mapping[str, Measurement], reason: str) -> list[Measurement]:
    return [
        done.get(phase) or Measurement(trial.op, phase, trial.shape, name, reason=reason)
        for phase in trial.work
    ]


def _norms(result: Tensor, gradients: tuple[Tensor, ...]) -> list[float]:
    # float32 sums without a float32 copy: the logits' gradient is 8 GB in bf16 at 32k tokens
    return [torch.linalg.vector_norm(t.detach(), dtype=torch.float32).item() for t in (result, *gradients)]


def _difference(want: list[float], got: list[float]) -> float | None:
    """The largest relative one; None where a norm is not finite."""
    differences = [abs(g - w) / max(abs(w), 1e-30) for w, g in zip(want, got, strict=True)]
    return max(differences) if all(map(math.isfinite, differences)) else None
