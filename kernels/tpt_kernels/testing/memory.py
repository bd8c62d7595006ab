"""What one launch reads and writes: found outside the tensors it was given, or shared between programs.

An access is kept as runs of adjacent bytes (a tile of 64 rows is 64 runs, not 8192 lanes): the checks cost
a few microseconds an access, and memory that no program touches costs nothing however far its rows lie apart.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

type Access = Literal["load", "store"]
type Addresses = NDArray[np.uint64]
type Program = tuple[int, int, int]


class OutOfBoundsError(Exception):
    """A program touched memory outside the tensors that its launch was given."""


class RaceError(Exception):
    """Two programs touched one address, at least one of them storing, and no atomic orders them."""


class Runs(NamedTuple):
    """Runs of adjacent bytes, [start, stop) each."""

    starts: Addresses
    stops: Addresses

    @classmethod
    def none(cls) -> Self:
        return cls(np.empty(0, np.uint64), np.empty(0, np.uint64))

    def bytes(self) -> int:
        return int((self.stops - self.starts).sum())


@dataclass(frozen=True)
class Extent:
    """The memory of one tensor argument: rows of `row_bytes` adjacent bytes, strides between them."""

    name: str
    start: int
    stop: int
    row_bytes: int
    strides: tuple[tuple[int, int], ...]  # (bytes, count) of the dimensions above a row, widest first

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Self:
        width = tensor.element_size()
        dims = [(st * width, n) for n, st in zip(tensor.shape, tensor.stride(), strict=True) if n > 1 and st]
        dims.sort(reverse=True)
        start = tensor.data_ptr()
        stop = start + sum(stride * (count - 1) for stride, count in dims) + width
        row = width
        while dims and dims[-1][0] == row:
            row *= dims.pop()[1]
        inner = row
        for stride, count in reversed(dims):
            if stride < inner:  # rows overlap: no byte between start and stop is known to be a gap
                return cls(name, start, stop, stop - start, ())
            inner = stride * count
        return cls(name, start, stop, row, tuple(dims))

    def holds(self, runs: Runs) -> NDArray[np.bool_]:
        """Which runs lie whole in the tensor, gaps between its rows left out."""
        inside = (runs.starts >= self.start) & (runs.stops <= self.stop)
        if self.strides and inside.any():
            rest = runs.starts - np.uint64(self.start)  # wraps before the start, where inside is False
            for stride, count in self.strides:
                index = rest // np.uint64(stride)
                inside &= index < count
                rest = rest - index * np.uint64(stride)
            inside &= rest + (runs.stops - runs.starts) <= self.row_bytes
        return inside


@dataclass
class Launch:
    """One launch of a kernel: its tensors, and what its programs have touched so far."""

    kernel: str
    extents: tuple[Extent, ...]
    check_memory: bool
    check_races: bool
    programs: list[Program] = field(default_factory=list)
    width: int = 8  # bytes of the narrowest store, to count addresses by
    open: dict[Access, list[Runs]] = field(default_factory=lambda: {"load": [], "store": []})
    closed: dict[Access, list[Runs]] = field(default_factory=lambda: {"load": [], "store": []})

    def touch(
        self, access: Access, addresses: Addresses, lanes: NDArray[np.bool_], width: int, program: Program
    ) -> None:
        """Records the access of the lanes that are True, `width` bytes each; raises OutOfBoundsError."""
        runs = runs_of(addresses, lanes, width)
        if not runs.starts.size:
            return
        if self.check_memory and not self._held(runs):
            self._check_lanes(access, addresses[lanes], width, program)
        if self.check_races:
            if not self.programs or self.programs[-1] != program:
                self._close_program()
                self.programs.append(program)
            self.open[access].append(runs)
            if access == "store":
                self.width = min(self.width, width)

    def finish(self) -> None:
        """Raises RaceError if two programs touched one address and one of them stored."""
        if not self.check_races or not self.programs:
            return
        self._close_program()
        stores, storing = self._all("store")
        shared = overlaps(stores)
        if shared.starts.size:
            raise self._race(shared, "stored by two programs")
        loads, loading = self._all("load")
        shared = foreign(loads, loading, stores, storing)
        if shared.starts.size:
            raise self._race(shared, "stored by one program and loaded by another")

    def _held(self, runs: Runs) -> bool:
        """Whether one tensor holds all runs; the one that holds the first is looked at."""
        first = int(runs.starts[0])
        return any(e.start <= first < e.stop and bool(e.holds(runs).all()) for e in self.extents)

    def _check_lanes(self, access: Access, addresses: Addresses, width: int, program: Program) -> None:
        lanes = Runs(addresses, addresses + np.uint64(width))
        held = np.zeros(addresses.shape, bool)
        for extent in self.extents:
            held |= extent.holds(lanes)
        if not held.all():
            outside = addresses[~held]
            raise OutOfBoundsError(
                f"kernel {self.kernel}, program {program}: {access} of {outside.size} lanes outside the "
                f"launch's tensors, the first {self._place(int(outside[0]))}; mask these lanes, or pass "
                "the tensor that they are of"
            )

    def _place(self, address: int) -> str:
        """Where an address is, in words, from the nearest tensor."""
        if not self.extents:
            return "of a launch that was given no tensor with elements"
        distances = [(max(e.start - address, address - e.stop + 1, 0), i) for i, e in enumerate(self.extents)]
        distance, nearest = min(distances)
        extent = self.extents[nearest]
        if not distance:
            return f"between the rows of `{extent.name}`"
        if address < extent.start:
            return f"{distance} bytes before the start of `{extent.name}`"
        return f"{distance - 1} bytes past the end of `{extent.name}`"

    def _close_program(self) -> None:
        """Joins what the last program touched: a key tile read in each step of a loop is kept once."""
        for access, runs in self.open.items():
            if self.programs:
                self.closed[access].append(merged(runs))
            runs.clear()

    def _all(self, access: Access) -> tuple[Runs, NDArray[np.intp]]:
        """Every program's runs by their start, and the number of the program of each."""
        kept = self.closed[access]
        starts, stops = (np.concatenate(part) for part in zip(*kept, strict=True))
        owner = np.repeat(np.arange(len(kept)), [len(runs.starts) for runs in kept])
        order = np.argsort(starts, kind="stable")
        return Runs(starts[order], stops[order]), owner[order]

    def _race(self, shared: Runs, what: str) -> RaceError:
        addresses = -(-shared.bytes() // self.width)
        first = int(shared.starts[0])
        names = [e.name for e in self.extents if e.start <= first < e.stop]
        where = f" of `{names[0]}`" if names else ""
        return RaceError(
            f"kernel {self.kernel}: {addresses} addresses{where} {what}; let one program own each address, "
            "or use atomics (check_races=False for a kernel whose programs wait for each other)"
        )


def runs_of(addresses: Addresses, lanes: NDArray[np.bool_], width: int) -> Runs:
    """The lanes that are True as runs of adjacent bytes, in no order."""
    if _step(addresses, addresses.ndim - 1) != width:
        for dim in range(addresses.ndim - 1):  # a tile read transposed is adjacent along another dimension
            if _step(addresses, dim) == width:
                addresses, lanes = np.moveaxis(addresses, dim, -1), np.moveaxis(lanes, dim, -1)
                break
    flat = addresses.ravel() if lanes.all() else addresses[lanes]
    if not flat.size:
        return Runs.none()
    ends = np.flatnonzero(flat[1:] - flat[:-1] != width)
    starts = flat[np.concatenate(([0], ends + 1))]
    stops = flat[np.concatenate((ends, [flat.size - 1]))] + np.uint64(width)
    return Runs(starts, stops)


def _step(addresses: Addresses, dim: int) -> int:
    """Bytes from the first lane to its neighbour along a dimension."""
    if addresses.shape[dim : dim + 1] in ((), (1,)):
        return 0
    return int(addresses.take(1, dim).flat[0]) - int(addresses.flat[0])


def merged(parts: Iterable[Runs]) -> Runs:
    """The union of runs, sorted and disjoint."""
    starts, stops = (np.concatenate(part) for part in zip(Runs.none(), *parts, strict=True))
    order = np.argsort(starts, kind="stable")
    starts, reach = starts[order], np.maximum.accumulate(stops[order])
    new = np.flatnonzero(starts[1:] > reach[:-1]) + 1
    if not starts.size:
        return Runs.none()
    return Runs(starts[np.concatenate(([0], new))], reach[np.concatenate((new - 1, [starts.size - 1]))])


def overlaps(runs: Runs) -> Runs:
    """What lies in two or more of the runs, which are sorted by start."""
    reach = np.maximum.accumulate(runs.stops)[:-1]
    twice = runs.starts[1:] < reach
    return merged([Runs(runs.starts[1:][twice], np.minimum(runs.stops[1:], reach)[twice])])


def foreign(loads: Runs, loading: NDArray[np.intp], stores: Runs, storing: NDArray[np.intp]) -> Runs:
    """What loads share with the stores (sorted, disjoint) of another program."""
    first = np.searchsorted(stores.stops, loads.starts, side="right")
    counts = np.maximum(np.searchsorted(stores.starts, loads.stops, side="left") - first, 0)
    load = np.repeat(np.arange(counts.size), counts)  # each pair of a load and a store that overlap
    store = np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(load.size)
    others = loading[load] != storing[store]
    load, store = load[others], store[others]
    starts = np.maximum(loads.starts[load], stores.starts[store])
    return merged([Runs(starts, np.minimum(loads.stops[load], stores.stops[store]))])
