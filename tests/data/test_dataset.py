"""Samples against a naive reference that walks the tokens one by one."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tpt_megatron.config.schema import DataConfig
from tpt_megatron.data.blend import Blend
from tpt_megatron.data.dataset import Sample, Samples
from tpt_megatron.data.permutation import Permutation
from tpt_megatron.errors import ConfigError, DamagedError, InputError

Sequences = list[tuple[list[int], int, int]]
Lists = tuple[list[int], list[int], list[int], list[int], list[bool]]


def naive_window(sequences: Sequences, window: int, length: int, document_mask: bool) -> Lists:
    """tokens, labels, positions, cu_seqlens, thinking of one window; one pass over a list of all tokens."""
    stream = [
        (identity, number, start <= place < end)
        for number, (ids, start, end) in enumerate(sequences)
        for place, identity in enumerate(ids)
    ]
    tokens, labels, positions, bounds, thinking = [], [], [], [0], []
    position = 0
    for place in range(window * length, (window + 1) * length):
        (identity, number, _), (label, label_number, label_thinks) = stream[place], stream[place + 1]
        tokens.append(identity)
        positions.append(position)
        position += 1
        if document_mask and number != label_number:
            labels.append(-100)
            thinking.append(False)
            bounds.append(len(tokens))
            position = 0
        else:
            labels.append(label)
            thinking.append(label_thinks)
    if bounds[-1] != length:
        bounds.append(length)
    return tokens, labels, positions, bounds, thinking


def as_lists(sample: Sample) -> Lists:
    return (
        sample.tokens.tolist(),
        sample.labels.tolist(),
        sample.positions.tolist(),
        sample.cu_seqlens.tolist(),
        sample.thinking.tolist(),
    )


def config(blend: dict[Path, float], length: int, document_mask: bool = False) -> DataConfig:
    pairs = tuple((str(prefix), weight) for prefix, weight in blend.items())
    return DataConfig(blend=pairs, sequence_length=length, document_mask=document_mask)


@pytest.mark.parametrize("document_mask", [False, True])
@pytest.mark.parametrize(("length", "longest"), [(1, 5), (8, 3), (16, 40), (32, 500), (64, 9)])
def test_two_epochs_of_a_blend_equal_the_reference(
    tmp_path: Path,
    make_dataset: Callable[..., Path],
    random_sequences: Callable[..., Sequences],
    length: int,
    longest: int,
    document_mask: bool,
) -> None:
    sequences = [random_sequences(400 // longest + 20, longest, seed) for seed in (1, 2)]
    prefixes = [make_dataset(tmp_path / str(index), rows) for index, rows in enumerate(sequences)]
    weights = [0.75, 0.25]
    data = config(dict(zip(prefixes, weights, strict=True)), length, document_mask)
    samples, blend = Samples(data, seed=3, vocab_size=600), Blend(weights)
    windows = [(sum(len(ids) for ids, _, _ in rows) - 1) // length for rows in sequences]
    seen: list[Counter[int]] = [Counter(), Counter()]
    expected: dict[tuple[int, int], Lists] = {}
    for index in range(8 * max(windows)):
        source, number = blend.locate(index)
        if number >= 2 * windows[source]:
            continue
        epoch, place = divmod(number, windows[source])
        window = Permutation(windows[source], 3, epoch, source)[place]
        if (source, window) not in expected:
            expected[source, window] = naive_window(sequences[source], window, length, document_mask)
        assert as_lists(samples[index]) == expected[source, window]
        seen[source][window] += 1
    for source, count in enumerate(windows):
        assert seen[source] == dict.fromkeys(range(count), 2)


def test_shapes_types_and_independence(
    tmp_path: Path, make_dataset: Callable[..., Path], random_sequences: Callable[..., Sequences]
) -> None:
    prefix = make_dataset(tmp_path / "x", random_sequences(50, 9))
    samples = Samples(config({prefix: 1.0}, 16, True), seed=0, vocab_size=600)
    sample = samples[0]
    assert [sample.tokens.dtype, sample.labels.dtype, sample.positions.dtype] == [np.int64] * 3
    assert (sample.cu_seqlens.dtype, sample.thinking.dtype) == (np.int32, np.bool_)
    sample.tokens[:] = 0  # a caller may write into its sample
    again = Samples(config({prefix: 1.0}, 16, True), seed=0, vocab_size=600)
    assert samples[0].tokens.tolist() == again[0].tokens.tolist()
    with pytest.raises(IndexError):
        samples[-1]


def test_the_seed_and_the_epoch_change_the_order(
    tmp_path: Path, make_dataset: Callable[..., Path], random_sequences: Callable[..., Sequences]
) -> None:
    prefix = make_dataset(tmp_path / "x", random_sequences(200, 20))
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


def test_describe(tmp_path: Path, make_dataset: Callable[..., Path]) -> None:
    prefix = make_dataset(tmp_path / "x", [(list(range(40)), 0, 0)])
    assert Samples(config({prefix: 0.5}, 16), 0, 600).describe() == {
        "tokens": 40,
        "windows": 2,
        "datasets": [{"prefix": str(prefix), "weight": 0.5, "tokens": 40, "windows": 2, "sequences": 1}],
        "tokenizer": {"name": "t", "fingerprint": "f" * 64},
    }
