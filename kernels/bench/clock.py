"""Time, memory and the machine's ceilings, measured the same way for every contender."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

FLUSHED_BYTES = 512 * 2**20  # above every last-level cache: 60 MB of L2 on an H200, 256 MB on an MI300X
FEWEST_REPEATS, MOST_REPEATS = 3, 100


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
        return f"not begun: the part's {self.seconds:.0f} s had passed"


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
        estimate = self._time(prepare, run, 1)[0]
        repeats = min(max(FEWEST_REPEATS, int(self.budget_ms / max(estimate, 1e-3))), MOST_REPEATS)
        return Timing(statistics.median(self._time(prepare, run, repeats)), repeats)

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

    def _time[State](
        self, prepare: Callable[[], State], run: Callable[[State], object], repeats: int
    ) -> list[float]:
        if self._flushed is None:
            seconds = []
            for _ in range(repeats):
                state = prepare()
                begun = time.perf_counter()
                run(state)
                seconds.append(time.perf_counter() - begun)
            return [1e3 * s for s in seconds]
        events = [
            [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
            for _ in range(repeats)
        ]
        for begin, end in events:
            state = prepare()
            self._flushed.zero_()  # also hides the launch of `run`: the device is busy while the host queues
            begin.record()
            run(state)
            end.record()
        self.synchronize()
        return [begin.elapsed_time(end) for begin, end in events]


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
