"""One op at one shape: every contender is run, timed and weighed, and each that could not is named.

A contender is ours or a peer; it computes the same from the same tensors. Its norms are compared with those
of torch's own op, so that one that computes something else, fast, does not count: neither a peer nor ours.
"""

import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from clock import Ceilings, Clock, Deadline, Turn
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
    difference: float | None = None  # largest relative difference of a norm from torch's own
    alternated_peer: str | None = None  # ours auto and this peer were timed again, run by run in turn:
    alternated_ratio: float | None = None  # our time over its time
    reason: str | None = None

    @property
    def counts(self) -> bool:
        return self.milliseconds is not None and self.reason is None


def first_before(mine: Mapping[str, Contender], peers: Mapping[str, Contender]) -> dict[str, Contender]:
    """The first peer, ours, then the rest: early enough to be measured in a run that is cut short."""
    first = next(iter(peers))
    return {first: peers[first], **mine, **peers}


class PeerRefusalError(RuntimeError):
    """A peer is here but not for this shape or device; the message is the reason."""


def refusals() -> tuple[type[BaseException], ...]:
    """What a peer may raise that is a reason, not the end of the run; a loaded package's own errors too."""
    kinds: list[type[BaseException]] = [ImportError, RuntimeError, ValueError, TypeError, AttributeError]
    # SubprocessError: Triton builds its launcher by a C compiler, which may be missing or fail.
    kinds += [AssertionError, KeyError, IndexError, OSError, SyntaxError, subprocess.SubprocessError]
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


@dataclass
class Run:
    """What a contender left: its figures by phase, and the norms of its result and gradients."""

    done: dict[str, Measurement]
    ready: Ready | None = None
    norms: list[float] | None = None
    peak_bytes: int | None = None
    reason: str | None = None


def run_trial(
    trial: Trial,
    contenders: Mapping[str, Contender],
    clock: Clock,
    ceilings: Ceilings,
    deadline: Deadline,
    norms: list[float] | None = None,
) -> list[Measurement]:
    """A measurement for every contender and phase, in order; after the deadline only a reason.

    norms: those to compare with, filled here when empty: of the first peer that ran, in order.
    """  # fmt: skip
    norms = [] if norms is None else norms
    runs: dict[str, Run] = {}
    lost: str | None = None
    for name, contender in contenders.items():
        if lost is not None or deadline.passed:
            runs[name] = Run({}, reason=lost or deadline.reason)
            continue
        runs[name] = _run_contender(trial, name, contender, clock, ceilings)
        if runs[name].reason is not None:
            lost = clock.lost()
        if clock.device.type == "cuda" and lost is None:
            torch.cuda.empty_cache()
    if not norms:
        norms += next((run.norms for name, run in runs.items() if not name.startswith("ours") and run.norms
                       and all(map(math.isfinite, run.norms))), [])  # fmt: skip
    found = [m for name, run in runs.items() for m in _judged(trial, name, run, norms)]
    ready = {name: run.ready for name, run in runs.items() if run.ready is not None}
    return found if lost or deadline.passed else _alternated(trial, found, ready, clock)


def _run_contender(
    trial: Trial, name: str, contender: Contender, clock: Clock, ceilings: Ceilings
) -> Run:  # fmt: skip
    run = Run({})
    try:
        run.ready = ready = contender()
        phases: dict[str, float | None] = dict.fromkeys(trial.work)
        if "forward" in phases:  # timed first: a peer without a backward still has this figure
            run.done["forward"] = _timed(trial, name, "forward", ready, clock, ceilings)
        trial.restore()
        result = ready.forward()
        norms = _norms(result, trial.gradients(result))
        del result
        trial.restore()
        run.peak_bytes = clock.peak_bytes(lambda: trial.gradients(ready.forward()))
        for phase in phases:
            run.done[phase] = run.done.get(phase) or _timed(trial, name, phase, ready, clock, ceilings)
        run.norms = norms
    except refusals() as error:
        run.reason = explain(error)
    return run


def _judged(trial: Trial, name: str, run: Run, norms: list[float]) -> list[Measurement]:
    """Its measurements, with the reason why they are missing or do not count."""
    if run.norms is None:
        return _failed(trial, name, run.done, run.reason or "no reason")
    difference = _difference(norms or run.norms, run.norms)
    wrong = None
    if difference is None:
        wrong = "does not count: a norm is not finite"
    elif difference > LARGEST_DIFFERENCE:
        wrong = f"does not count: a norm differs by {difference:.1%} from torch's own"
    return [
        replace(run.done[phase], peak_bytes=run.peak_bytes, difference=difference, reason=wrong)
        for phase in trial.work
    ]


def _alternated(
    trial: Trial, found: list[Measurement], ready: Mapping[str, Ready], clock: Clock
) -> list[Measurement]:
    """`found`, with `ours auto` and the fastest peer of each phase timed again in turn.

    Minutes lie between their own times, and a GPU's clock drifts by more than the 3% that is asked.
    """
    again = list(found)
    for i, mine in enumerate(found):
        if mine.contender != "ours auto" or not mine.counts:
            continue
        peers = [
            m for m in found if m.phase == mine.phase and m.counts and not m.contender.startswith("ours")
        ]
        if not peers:
            continue
        peer = min(peers, key=lambda m: m.milliseconds or 0.0)
        turns = [_turn(trial, mine.phase, ready[m.contender]) for m in (mine, peer)]
        try:
            ours, theirs = clock.alternated(turns, min(mine.repeats or 1, peer.repeats or 1))
        except refusals() as error:
            again[i] = replace(mine, reason=f"does not count: timed again, {explain(error)}")
            continue
        again[i] = replace(mine, alternated_peer=peer.contender, alternated_ratio=ours / theirs)
    return again


def _turn(trial: Trial, phase: str, ready: Ready) -> Turn:
    def restored_result() -> Tensor:
        trial.restore()
        return ready.forward()

    if phase == "forward":
        return trial.restore, lambda _: ready.forward()
    if phase == "backward":
        return restored_result, trial.gradients
    return trial.restore, lambda _: trial.gradients(ready.forward())


def _timed(
    trial: Trial, name: str, phase: str, ready: Ready, clock: Clock, ceilings: Ceilings
) -> Measurement:
    timing = clock.median(*_turn(trial, phase, ready))
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
