"""Every sample of small datasets against a naive reference that shares no code with them."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_reference import Lists, load

from tpt_megatron.config.schema import DataConfig
from tpt_megatron.data.blend import Blend
from tpt_megatron.data.dataset import Samples
from tpt_megatron.data.layout import dataset_file
from tpt_megatron.data.permutation import Permutation
from tpt_megatron.data.plan import write_plan
from tpt_megatron.data.sample import Sample
from tpt_megatron.data.writer import IndexedWriter
from tpt_megatron.errors import ConfigError, DamagedError, InputError
from tpt_megatron.train.feed import micro_batches

Sequences = list[tuple[list[int], int, int]]
END = 599


def write(prefix: Path, sequences: Sequences, length: int = 0, *, masked: bool = False, **about: Any) -> Path:
    """A dataset with a plan for rows of `length` tokens, and a random mask when it is `masked`."""
    tokenizer = {"name": "t", "fingerprint": "f" * 64, "vocab_size": 600}
    extras = []
    with IndexedWriter(prefix, 600) as writer:
        for ids, start, end in sequences:
            writer.add(ids, start, end, 0)
        if length:
            lengths = np.array([len(ids) for ids, _, _ in sequences], dtype=np.int32)
            write_plan(lengths, length, writer.temporary("plan"))
            extras.append("plan")
        if masked:
            bits = np.random.default_rng(9).random(writer.num_tokens) < 0.5
            writer.temporary("mask").write_bytes(np.packbits(bits, bitorder="little").tobytes())
            extras.append("mask")
        writer.finish({"tokenizer": tokenizer, "control": {"end": END}, "style": "none"} | about, extras)
    return prefix


def config(blend: dict[Path, float], length: int, document_mask: bool = False, **more: Any) -> DataConfig:
    pairs = tuple((str(prefix), weight) for prefix, weight in blend.items())
    return DataConfig(blend=pairs, sequence_length=length, document_mask=document_mask, **more)


def as_lists(sample: Sample) -> Lists:
    arrays = (sample.tokens, sample.labels, sample.positions, sample.cu_seqlens, sample.thinking)
    return tuple(array.tolist() for array in arrays)  # type: ignore[return-value]


CASES = [  # packing, document_mask, masked, style, length, longest
    ("concat", False, False, "none", 1, 5),
    ("concat", False, False, "none", 16, 40),
    ("concat", True, False, "none", 8, 3),
    ("concat", True, False, "none", 32, 500),
    ("concat", True, False, "none", 64, 2),  # many documents a window
    ("concat", False, True, "none", 16, 9),
    ("concat", False, True, "chat", 16, 9),  # its documents are masked all the same
    ("best_fit", False, False, "none", 16, 15),
    ("best_fit", True, False, "none", 16, 60),  # most documents are split
    ("best_fit", False, True, "chat", 24, 30),
    ("best_fit", False, False, "none", 1, 3),
]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case)))
def blended(
    request: pytest.FixtureRequest, tmp_path: Path, random_sequences: Callable[..., Sequences]
) -> tuple[DataConfig, list[list[Lists]]]:
    """A blend of two datasets, and the reference's rows of each."""
    packing, document_mask, masked, style, length, longest = request.param
    prefixes, rows = [], []
    for seed in (1, 2):
        sequences = random_sequences(200 // longest + 12, longest, seed)
        prefix = write(tmp_path / str(seed), sequences, length, masked=masked, style=style)
        prefixes.append(prefix)
        rows.append(load(prefix, length, END, packing, document_mask or style == "chat"))
    data = config(dict(zip(prefixes, (0.75, 0.25), strict=True)), length, document_mask, packing=packing)
    return data, rows


def expected_samples(data: DataConfig, rows: list[list[Lists]]) -> Iterator[Lists]:
    """The reference's rows in the order of seed 3, by the scalar forms of the blend and the permutation."""
    fills = [1.0, 1.0]
    if data.packing == "best_fit":
        sizes = [np.fromfile(f"{p}.bin", "<u2").size for p, _ in data.blend]
        fills = [s / (len(own) * data.sequence_length) for s, own in zip(sizes, rows, strict=True)]
    blend, index = Blend([w / f for (_, w), f in zip(data.blend, fills, strict=True)]), 0
    while True:
        source, number = blend.locate(index)
        epoch, place = divmod(number, len(rows[source]))
        yield rows[source][Permutation(len(rows[source]), 3, epoch, source)[place]]
        index += 1


def test_two_epochs_of_a_blend_equal_the_reference(blended: tuple[DataConfig, list[list[Lists]]]) -> None:
    data, rows = blended
    samples = Samples(data, seed=3, vocab_size=600)
    count = 2 * samples.samples_per_epoch
    want = [row for row, _ in zip(expected_samples(data, rows), range(count), strict=False)]
    assert [as_lists(samples[index]) for index in range(count)] == want
    got = [
        as_lists(sample) for first in range(0, count, 7) for sample in samples.batch(range(first, first + 7))
    ]
    assert got[:count] == want
    scattered = np.random.default_rng(0).integers(0, count, size=64)
    assert [as_lists(sample) for sample in samples.batch(scattered)] == [want[i] for i in scattered]
    epoch = Counter(str(row) for row in want[: samples.samples_per_epoch])
    assert set(epoch) == {str(row) for own in rows for row in own}


@pytest.mark.parametrize("data_size", [1, 2, 4])
def test_any_number_of_ranks_sees_the_same_samples(
    blended: tuple[DataConfig, list[list[Lists]]], data_size: int
) -> None:
    data, rows = blended
    samples, length = Samples(data, seed=3, vocab_size=600), data.sequence_length
    want = expected_samples(data, rows)
    for step in range(3):
        for rank in range(data_size):
            for batch in micro_batches(samples, 8 * step, 8, 2, rank, data_size):
                first, second = next(want), next(want)
                for place, column in enumerate(("tokens", "labels", "positions", "thinking")):
                    assert (
                        getattr(batch, column).tolist()
                        == first[[0, 1, 2, 4][place]] + second[[0, 1, 2, 4][place]]
                    )
                bounds = first[3] + [bound + length for bound in second[3][1:]]
                assert batch.cu_seqlens.tolist() == bounds
                assert batch.max_seqlen == max(np.diff(bounds))


@pytest.mark.parametrize(
    ("weight_unit", "packing"), [("token", "concat"), ("document", "concat"), ("token", "best_fit")]
)
def test_shares_match_the_weights(
    tmp_path: Path, random_sequences: Callable[..., Sequences], weight_unit: str, packing: str
) -> None:
    """Of tokens, over 100,000 samples, to 0.1% of all."""
    weights, longest = (0.125, 0.6, 0.275), (30, 15, 45)
    prefixes = [write(tmp_path / str(n), random_sequences(800, n, seed=n), 32) for n in longest]
    blend = dict(zip(prefixes, weights, strict=True))
    samples = Samples(config(blend, 32, packing=packing, weight_unit=weight_unit), 0, 600)
    tokens = np.zeros(3)
    sizes = [np.fromfile(f"{p}.bin", "<u2").size for p in prefixes]
    for first in range(0, 100_000, 2000):
        batch = samples.batch(range(first, first + 2000))
        own = batch.documents.sequence >= 0
        begin, row = batch.documents.begin, batch.documents.row
        stop = np.append(begin[1:], 0)
        stop = np.where((stop == 0) | (np.append(row[1:], -1) != row), 32, stop)
        tokens += np.bincount(batch.documents.dataset[own], (stop - begin)[own], minlength=3)
    want = np.array(weights)
    if weight_unit == "document":
        want = want * np.array(sizes) / 800
        documents = tokens / (np.array(sizes) / 800)
        assert np.abs(documents / documents.sum() - weights).max() < 0.001
    assert np.abs(tokens / tokens.sum() - want / want.sum()).max() < 0.001


def test_batches_are_independent_and_their_memory_comes_back(
    tmp_path: Path, random_sequences: Callable[..., Sequences]
) -> None:
    prefix = write(tmp_path / "x", random_sequences(50, 9))
    samples = Samples(config({prefix: 1.0}, 16, True), seed=0, vocab_size=600)
    kept = samples.batch(range(4))
    row, copy = kept[2].tokens, kept.tokens.copy()
    for first in range(20):
        samples.batch(range(first, first + 4)).tokens[:] = 0  # a caller may write into its samples
    assert (kept.tokens == copy).all()
    del kept
    samples.batch(range(10, 14))
    assert (row == copy[2]).all()  # one row holds the memory of its batch
    address = samples.batch(range(4)).tokens.__array_interface__["data"]
    assert samples.batch(range(4)).tokens.__array_interface__["data"] == address
    assert [array.dtype for array in (row, samples[0].labels, samples[0].positions)] == [np.int32] * 3
    for bad in ([-1], []):
        with pytest.raises(IndexError):
            samples.batch(bad)


def test_the_seed_and_the_epoch_change_the_order(
    tmp_path: Path, random_sequences: Callable[..., Sequences]
) -> None:
    prefix = write(tmp_path / "x", random_sequences(200, 20))
    windows = Samples(config({prefix: 1.0}, 16), 0, 600).describe()["windows"]

    def order(seed: int, first: int) -> tuple[tuple[int, ...], ...]:
        samples = Samples(config({prefix: 1.0}, 16), seed, 600)
        return tuple(tuple(samples[index].tokens.tolist()) for index in range(first, first + windows))

    orders = [order(0, 0), order(1, 0), order(0, windows)]
    assert len(set(orders)) == 3
    assert len({tuple(sorted(one)) for one in orders}) == 1


@pytest.mark.parametrize(("tokens", "windows"), [(16, 0), (17, 1), (32, 1), (33, 2)])
def test_the_last_partial_window_is_dropped(
    tmp_path: Path, make_dataset: Callable[..., Path], tokens: int, windows: int
) -> None:
    prefix = make_dataset(tmp_path / "x", [(list(range(tokens)), 0, 0)])
    if not windows:
        with pytest.raises(InputError, match=r"data\.sequence_length"):
            Samples(config({prefix: 1.0}, 16), 0, 600)
        return
    samples = Samples(config({prefix: 1.0}, 16), 0, 600)
    assert samples.describe()["windows"] == windows
    assert sorted(samples[index].labels[-1] for index in range(windows)) == [16, 32][:windows]


def test_datasets_that_do_not_go_together(tmp_path: Path, make_dataset: Callable[..., Path]) -> None:
    rows = [(list(range(40)), 0, 0)]
    first = make_dataset(tmp_path / "a", rows)
    other = make_dataset(tmp_path / "b", rows, fingerprint="e" * 64)
    with pytest.raises(ConfigError, match=r"data\.blend.*different tokenizers"):
        Samples(config({first: 1.0, other: 1.0}, 16), 0, 600)
    with pytest.raises(ConfigError, match=r"data\.blend.*got 600, expected model\.vocab_size 599"):
        Samples(config({first: 1.0}, 16), 0, 599)
    with pytest.raises(ConfigError, match=r"data\.blend is empty"):
        Samples(DataConfig(), 0, 600)


def test_best_fit_needs_a_plan_for_its_length(tmp_path: Path) -> None:
    rows = [(list(range(40)), 0, 0)]
    without, planned = write(tmp_path / "a", rows), write(tmp_path / "b", rows, 32)
    with pytest.raises(ConfigError, match=r"data\.packing.*pack it again with data\.packing=best_fit"):
        Samples(config({without: 1.0}, 16, packing="best_fit"), 0, 600)
    with pytest.raises(
        ConfigError, match=r"data\.sequence_length.*got 16, expected 32; .*sequence_length=16"
    ):
        Samples(config({planned: 1.0}, 16, packing="best_fit"), 0, 600)
    nameless = write(tmp_path / "c", rows, 32, control={})
    with pytest.raises(InputError, match="which token ends a document"):
        Samples(config({nameless: 1.0}, 32, packing="best_fit"), 0, 600)


def test_an_id_beyond_the_vocabulary_stops_before_the_device_does(
    tmp_path: Path, make_dataset: Callable[..., Path]
) -> None:
    prefix = make_dataset(tmp_path / "x", [(list(range(40)), 0, 0)])
    path = tmp_path / "x.bin"
    raw = bytearray(path.read_bytes())
    raw[7] ^= 0x80
    path.write_bytes(raw)
    samples = Samples(config({prefix: 1.0}, 16), 0, 600)
    with pytest.raises(DamagedError, match="outside its vocabulary"):
        [samples[index] for index in range(2)]


@pytest.mark.parametrize("field", ["sequence", "start", "length", "offset"])
@pytest.mark.parametrize("value", [-1, 10**6])
def test_a_plan_that_points_outside_is_refused(tmp_path: Path, field: str, value: int) -> None:
    """Sizes and header are right, so it opens; no row of it is made from memory that is not its own."""
    prefix = write(tmp_path / "x", [(list(range(9)), 0, 0)] * 5, 16)
    path = dataset_file(prefix, "plan")
    raw = np.frombuffer(bytearray(path.read_bytes()), np.uint8)
    items = raw[64 : 64 + 16 * 5].view([("sequence", "<i8"), ("start", "<i4"), ("length", "<i4")])
    offsets = raw[64 + 16 * 5 :].view("<i8")
    (offsets if field == "offset" else items[field])[1:3] = value
    path.write_bytes(raw.tobytes())
    samples = Samples(config({prefix: 1.0}, 16, packing="best_fit"), 0, 600)
    with pytest.raises(DamagedError, match=r"x\.plan"):
        samples.batch(range(5))


def test_describe(tmp_path: Path, make_dataset: Callable[..., Path]) -> None:
    prefix = make_dataset(tmp_path / "x", [(list(range(40)), 0, 0)])
    samples = Samples(config({prefix: 0.5}, 16), 0, 600)
    facts = samples.describe()
    assert len(facts["datasets"][0].pop("bytes")) == 16
    assert facts == {
        "tokens": 40,
        "windows": 2,
        "packing": "concat",
        "weight_unit": "token",
        "samples_per_epoch": 2,
        "datasets": [
            {"prefix": str(prefix), "weight": 0.5, "share": 1.0, "tokens": 40, "windows": 2, "sequences": 1,
             "samples_per_epoch": 2}
        ],
        "tokenizer": {"name": "t", "fingerprint": "f" * 64},
    }  # fmt: skip
    assert samples.epochs(5) == [2.5]
