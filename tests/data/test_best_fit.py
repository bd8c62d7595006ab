"""best_fit against best-fit-decreasing done one document at a time, and the plan's file."""

import tempfile
from bisect import bisect_left, insort
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tpt_megatron.data.best_fit import Packed, pack_lengths
from tpt_megatron.data.plan import ITEM_DTYPE, Plan, open_plan, write_plan
from tpt_megatron.errors import DamagedError, InputError

Lengths = npt.NDArray[np.int32]


def one_by_one(lengths: list[int], capacity: int) -> list[int]:
    """The room left in each bin, ascending: each document, longest first, into the fullest that takes it."""
    rooms: list[int] = []
    full = 0
    for length in sorted(lengths, reverse=True):
        while length > capacity:
            full, length = full + 1, length - capacity
        place = bisect_left(rooms, length)
        room = rooms.pop(place) if place < len(rooms) else capacity
        insort(rooms, room - length)
    return [0] * full + rooms


def some_lengths(kind: str, count: int, capacity: int) -> Lengths:
    random = np.random.default_rng(count)
    if kind == "equal":
        return np.full(count, max(capacity // 3, 1), dtype=np.int32)
    if kind == "uniform":
        return random.integers(1, capacity + 1, size=count).astype(np.int32)
    if kind == "tiny":
        return random.integers(1, max(capacity // 10, 2), size=count).astype(np.int32)
    spread = random.lognormal(np.log(capacity / 3), 0.8, size=count)  # a tail beyond the capacity
    return np.clip(spread, 1, 5 * capacity).astype(np.int32)


@pytest.mark.parametrize("kind", ["equal", "uniform", "tiny", "lognormal"])
@pytest.mark.parametrize(("count", "capacity"), [(1, 1), (7, 3), (500, 16), (3000, 100), (2000, 70_000)])
def test_bins_are_those_of_one_document_at_a_time(kind: str, count: int, capacity: int) -> None:
    """For documents up to the capacity; the reference sorts longer ones by what is left of them, as we do."""
    lengths = some_lengths(kind, count, capacity)
    packed = pack_lengths(lengths, capacity)
    check(packed, lengths, capacity)
    rooms = capacity - np.add.reduceat(packed.length, packed.offsets[:-1])
    tails = [(int(length) - 1) % capacity + 1 for length in lengths]
    fronts = int(((lengths - 1) // capacity).sum())
    assert sorted(rooms.tolist()) == sorted([0] * fronts + one_by_one(tails, capacity))


def check(packed: Packed, lengths: Lengths, capacity: int) -> None:
    """Every token is in one bin once, no bin is overfull, and no document that fits is cut."""
    covered: dict[int, list[tuple[int, int]]] = {}
    for sequence, start, length in zip(packed.sequence, packed.start, packed.length, strict=True):
        covered.setdefault(int(sequence), []).append((int(start), int(length)))
    assert sorted(covered) == list(range(len(lengths)))
    for sequence, items in covered.items():
        place = 0
        for start, length in sorted(items):
            assert start == place
            place += length
        assert place == lengths[sequence]
        assert len(items) == -(-lengths[sequence] // capacity)
    for low, high in zip(packed.offsets[:-1], packed.offsets[1:], strict=True):
        assert 0 < packed.length[low:high].sum() <= capacity
        assert (np.diff(packed.sequence[low:high]) > 0).all()


def test_a_realistic_mix_pads_little() -> None:
    """Documents of median 900 tokens with thoughts of median 3,000 (facts-data, 4)."""
    random = np.random.default_rng(0)
    text = np.clip(random.lognormal(np.log(900), 0.8, 100_000), 32, 2048)
    thought = np.clip(random.lognormal(np.log(3000), 0.7, 100_000), 64, 8192)
    lengths = (text + thought + 1).astype(np.int32)
    for own in (lengths, np.minimum(lengths, 8192)):
        with tempfile.TemporaryFile() as file:
            assert write_plan(own, 8192, file).padding_fraction < 0.015


@pytest.mark.parametrize("per_segment", [2**22, 100, 7])
def test_a_plan_reads_back_and_segments_bound_its_bins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_segment: int
) -> None:
    monkeypatch.setattr("tpt_megatron.data.plan.SEQUENCES_PER_SEGMENT", per_segment)
    lengths = some_lengths("lognormal", 1000, 64)
    unaligned = np.frombuffer(b"x" + lengths.tobytes(), np.uint8)[1:].view("<i4")
    summary = write_plan(unaligned, 64, tmp_path / "plan")
    plan = open_plan(tmp_path / "plan")
    assert (plan.capacity, plan.sequences, plan.num_bins) == (64, 1000, summary.bins)
    assert len(plan.items) == summary.items
    assert summary.split_documents == (lengths > 64).sum()
    assert summary.padding_fraction == pytest.approx(1 - lengths.sum() / (64 * summary.bins))
    columns = (np.asarray(plan.items[name]) for name in ("sequence", "start", "length"))
    check(Packed(plan.offsets, *columns), lengths, 64)
    for low, high in zip(plan.offsets[:-1], plan.offsets[1:], strict=True):
        assert len(set((plan.items["sequence"][low:high] // per_segment).tolist())) == 1
    assert not list(tmp_path.glob(".*"))
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]


def test_an_open_file_gets_the_same_bytes_where_it_stands(tmp_path: Path) -> None:
    lengths = some_lengths("uniform", 50, 16)
    write_plan(lengths, 16, tmp_path / "plan")
    with open(tmp_path / "file", "wb") as file:
        file.write(b"before")
        write_plan(lengths, 16, file)
        file.write(b"after")
    whole = (tmp_path / "plan").read_bytes()
    assert (tmp_path / "file").read_bytes() == b"before" + whole + b"after"
    assert whole == (tmp_path / "plan").read_bytes()


def test_an_empty_sequence_is_refused_and_no_sequence_is_not(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sequence 1 has no tokens"):
        write_plan(np.array([3, 0], np.int32), 16, tmp_path / "plan")
    assert write_plan(np.array([], np.int32), 16, tmp_path / "plan").bins == 0
    assert open_plan(tmp_path / "plan").num_bins == 0


@pytest.mark.parametrize("size", [0, 40, 63, 64, 100, -1])
def test_a_cut_plan_does_not_open(tmp_path: Path, size: int) -> None:
    path = planned(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DamagedError, match="plan"):
        open_plan(path)


@pytest.mark.parametrize("byte", range(64))
def test_a_flipped_bit_in_the_header_does_not_open(tmp_path: Path, byte: int) -> None:
    path = planned(tmp_path)
    raw = bytearray(path.read_bytes())
    raw[byte] ^= 1 << byte % 8
    path.write_bytes(raw)
    with pytest.raises(DamagedError, match="plan"):
        open_plan(path)


def planned(folder: Path) -> Path:
    write_plan(some_lengths("uniform", 30, 16), 16, folder / "plan")
    plan: Plan = open_plan(folder / "plan")
    assert Counter(plan.items["sequence"].tolist()) == Counter(range(30))
    assert plan.items.dtype == ITEM_DTYPE
    return folder / "plan"
