"""Time, memory and the machine's ceilings, measured the same way for every contender."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

FLUSHED_BYTES = 512 * 2**20  # above every last-level cache: 60 MB of L2 on an H200, 256 MB on an MI300X
FEWEST_REPEATS, MOST_REPEATS = 10, 100
SLEPT_CYCLES = 2_000_000  # about 1 ms of an H200 at 1.98 GHz: longer than the host needs to queue a call

type Turn = tuple[Callable[[], Any], Callable[[Any], object]]  # prepare, and run on what it gave
NOT_BEGUN = "not begun:"
LOST = f"{NOT_BEGUN} the device is lost:"


@dataclass(frozen=True)
class Timing:
    """The median of `repeats` runs."""

    milliseconds: float
    repeats: int


@dataclass(frozen=True)
class Ceilings:
    """What the machine gives a large matrix product and a large copy, in this run."""

    teraflops: float  # TFLOP/s
    terabytes: float  # TB/s, read and written


@dataclass(frozen=True)
class Deadline:
    """A time on the monotonic clock after which nothing new is begun."""

    seconds: float
    begun: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(seconds, time.monotonic())

    @property
    def passed(self) -> bool:
        return time.monotonic() - self.begun > self.seconds

    @property
    def reason(self) -> str:
        return f"{NOT_BEGUN} the part's {self.seconds:.0f} s had passed"


class Clock:
    """Medians after a warm-up: CUDA events on a GPU, with the cache flushed before each; else wall time.

    `budget_ms` is about how long the timed runs of one measurement take together.
    """

    def __init__(self, device: torch.device, budget_ms: float) -> None:
        self.device, self.budget_ms = device, budget_ms
        self._flushed = (
            torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=device) if device.type == "cuda" else None
        )

    def median[State](self, prepare: Callable[[], State], run: Callable[[State], object]) -> Timing:
        """Time of `run(prepare())`, `prepare` not counted; the first two runs warm up and are not counted."""
        run(prepare())
        estimate = self._times([(prepare, run)], 1)[0][0]
        repeats = min(max(FEWEST_REPEATS, int(self.budget_ms / max(estimate, 1e-3))), MOST_REPEATS)
        return Timing(statistics.median(self._times([(prepare, run)], repeats)[0]), repeats)

    def alternated(self, turns: Sequence[Turn], repeats: int) -> list[float]:
        """Median ms of each, run in turn: a clock that drifts with the temperature slows each alike."""
        self._times(turns, 1)
        return [statistics.median(times) for times in self._times(turns, repeats)]

    def wall_ms(self, run: Callable[[], object]) -> float:
        """Wall time of one call, the device's work included: for what a host does once per batch."""
        self.synchronize()
        begun = time.perf_counter()
        run()
        self.synchronize()
        return (time.perf_counter() - begun) * 1e3

    def peak_bytes(self, run: Callable[[], object]) -> int | None:
        """Most memory in use during a call beyond what was in use before; None where nothing counts it."""
        if self.device.type != "cuda":
            return None
        self.synchronize()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        run()
        self.synchronize()
        return torch.cuda.max_memory_allocated(self.device) - before

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def lost(self) -> str | None:
        """Why nothing more can run on the device: an illegal access ends its context for the process."""
        try:
            self.synchronize()
        except RuntimeError as error:  # torch.AcceleratorError is one
            return f"{LOST} {str(error).splitlines()[0]}"
        return None

    def _times(self, turns: Sequence[Turn], repeats: int) -> list[list[float]]:
        """ms of every run of each turn."""
        if self._flushed is None:
            times: list[list[float]] = [[] for _ in turns]
            for _ in range(repeats):
                for taken, (prepare, run) in zip(times, turns, strict=True):
                    state = prepare()
                    begun = time.perf_counter()
                    run(state)
                    taken.append(1e3 * (time.perf_counter() - begun))
            return times
        events: list[list[tuple[Any, Any]]] = [[] for _ in turns]
        for _ in range(repeats):
            for queued, (prepare, run) in zip(events, turns, strict=True):
                queued.append(self._queued(prepare, run))
        self.synchronize()
        return [[begin.elapsed_time(end) for begin, end in queued] for queued in events]

    def _queued(self, prepare: Callable[[], Any], run: Callable[[Any], object]) -> tuple[Any, Any]:
        """The events around one run, queued behind enough work that the launches of `run` are not timed."""
        assert self._flushed is not None
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        state = prepare()
        self._flushed.zero_()
        sleep = getattr(torch.cuda, "_sleep", None)  # torch's own tests use it; a build may lack it
        if sleep is not None:
            sleep(SLEPT_CYCLES)
        begin.record()
        run(state)
        end.record()
        return begin, end


def measure_ceilings(clock: Clock) -> Ceilings:
    """A bf16 product of 8192 x 8192 matrices and a copy of 2 GiB; small and in fp32 on a CPU."""
    large = clock.device.type == "cuda"
    side, copied = (8192, 2**31) if large else (512, 2**24)
    dtype = torch.bfloat16 if large else torch.float32
    # Random numbers: a product of zeros draws less power and runs 13% faster (894 against 788 TFLOP/s, H200).
    left, right = (torch.randn(side, side, device=clock.device, dtype=dtype) for _ in range(2))
    product = clock.median(lambda: None, lambda _: left @ right)
    source = torch.ones(copied, device=clock.device, dtype=torch.int8)
    sink = torch.empty_like(source)
    copy = clock.median(lambda: None, lambda _: sink.copy_(source))
    return Ceilings(
        teraflops=2 * side**3 / product.milliseconds / 1e9, terabytes=2 * copied / copy.milliseconds / 1e9
    )
