"""The dataset's files: byte for byte those of megatron.core, whole or absent, and damage found."""

import os
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tpt_megatron.artifact import verify_manifest
from tpt_megatron.data.indexed import IndexedDataset
from tpt_megatron.data.layout import CORE, token_dtype
from tpt_megatron.data.writer import IndexedWriter
from tpt_megatron.errors import DamagedError, InputError

Sequences = list[tuple[list[int], int, int]]


@pytest.fixture(scope="module")
def megatron() -> Any:
    from megatron.core.datasets import indexed_dataset  # takes seconds: once for the module

    return indexed_dataset


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # megatron's own
@pytest.mark.parametrize("vocab_size", [600, 65499, 65500, 200_000])
def test_files_are_those_of_megatron_core(
    tmp_path: Path,
    megatron: Any,
    make_dataset: Callable[..., Path],
    random_sequences: Callable[..., Sequences],
    vocab_size: int,
) -> None:
    import torch

    sequences = random_sequences(300, 40, vocab_size=vocab_size)
    sequences += [([vocab_size - 1], 0, 0), ([0], 0, 1)]
    prefix = make_dataset(tmp_path / "ours", sequences, vocab_size)
    dtype = megatron.DType.optimal_dtype(vocab_size)
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
    for ids, _, _ in sequences:
        builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in ("bin", "idx"):
        theirs = (tmp_path / f"theirs.{suffix}").read_bytes()
        assert (tmp_path / f"ours.{suffix}").read_bytes() == theirs
    read = megatron.IndexedDataset(str(prefix), mmap=False)
    assert token_dtype(vocab_size) == np.dtype(dtype)
    assert [read[index].tolist() for index in range(len(read))] == [ids for ids, _, _ in sequences]


@pytest.mark.parametrize("sequences_per_write", [1, 7, 2**20])
def test_an_index_in_pieces_is_the_same(
    tmp_path: Path,
    make_dataset: Callable[..., Path],
    random_sequences: Callable[..., Sequences],
    monkeypatch: pytest.MonkeyPatch,
    sequences_per_write: int,
) -> None:
    sequences = random_sequences(21, 9)
    make_dataset(tmp_path / "whole", sequences)
    monkeypatch.setattr("tpt_megatron.data.writer.SEQUENCES_PER_WRITE", sequences_per_write)
    make_dataset(tmp_path / "pieces", sequences)
    assert (tmp_path / "whole.idx").read_bytes() == (tmp_path / "pieces.idx").read_bytes()


def test_reads_back_what_was_written(
    tmp_path: Path, make_dataset: Callable[..., Path], random_sequences: Callable[..., Sequences]
) -> None:
    sequences = random_sequences(100, 30)
    dataset = IndexedDataset(make_dataset(tmp_path / "a.b", sequences))
    stream = [identity for ids, _, _ in sequences for identity in ids]
    starts = [0, *accumulate(len(ids) for ids, _, _ in sequences)]
    assert (dataset.num_sequences, dataset.num_tokens) == (100, len(stream))
    assert [dataset.offsets[index] for index in range(len(dataset.offsets))] == starts[:-1]
    assert dataset.offsets[3:7].tolist() == starts[3:7]
    assert [dataset.sequence(index).tolist() for index in range(100)] == [ids for ids, _, _ in sequences]
    assert dataset.read(5, 200).tolist() == stream[5:205]
    assert dataset.parts.tolist() == [(start, end, 0) for _, start, end in sequences]
    for start, count in [(len(stream), 1), (0, len(stream) + 1), (-1, 1), (3, -1)]:
        with pytest.raises(IndexError):
            dataset.read(start, count)


@pytest.mark.parametrize("bad", [[600], [-1], [], [3, 70_000]])
def test_ids_outside_the_vocabulary_are_refused(tmp_path: Path, bad: list[int]) -> None:
    with IndexedWriter(tmp_path / "x", 600) as writer:
        writer.add([599], 0, 0, 0)
        with pytest.raises(InputError, match="sequence 1"):
            writer.add(bad, 0, 0, 0)
    assert list(tmp_path.iterdir()) == []


def test_no_manifest_is_no_dataset_and_another_kind_neither(
    tmp_path: Path, make_dataset: Callable[..., Path], make_trajectories: Callable[..., Path]
) -> None:
    prefix = make_dataset(tmp_path / "x", [([1, 2], 0, 0)])
    folder = make_trajectories(tmp_path / "t", [[("a", "A", "p")]])
    (folder / "manifest.json").rename(folder / "y.manifest.json")
    with pytest.raises(InputError, match="got trajectories, expected dataset"):
        IndexedDataset(folder / "y")
    (tmp_path / "x.manifest.json").unlink()
    with pytest.raises(InputError, match="no manifest"):
        IndexedDataset(prefix)


@pytest.mark.parametrize("suffix", [*CORE, "manifest.json"])
def test_a_cut_file_does_not_open(
    tmp_path: Path, make_dataset: Callable[..., Path], random_sequences: Callable[..., Sequences], suffix: str
) -> None:
    prefix = make_dataset(tmp_path / "x", random_sequences(20, 9))
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedError, match=path.name):
        IndexedDataset(prefix)


@pytest.mark.parametrize("suffix", [*CORE, "manifest.json"])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.99])
def test_a_flipped_bit_is_found(
    tmp_path: Path,
    make_dataset: Callable[..., Path],
    random_sequences: Callable[..., Sequences],
    suffix: str,
    place: float,
) -> None:
    make_dataset(tmp_path / "x", random_sequences(20, 9))
    path = tmp_path / f"x.{suffix}"
    verify_manifest(tmp_path / "x.manifest.json")
    raw = bytearray(path.read_bytes())
    raw[int(place * len(raw))] ^= 4
    path.write_bytes(raw)
    with pytest.raises(DamagedError, match=path.name):
        verify_manifest(tmp_path / "x.manifest.json")


@pytest.mark.parametrize("place", [3, 9, 17, 18, 26])
def test_a_changed_header_does_not_open(
    tmp_path: Path, make_dataset: Callable[..., Path], random_sequences: Callable[..., Sequences], place: int
) -> None:
    prefix = make_dataset(tmp_path / "x", random_sequences(20, 9))
    path = tmp_path / "x.idx"
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DamagedError, match=r"x\.idx"):
        IndexedDataset(prefix)


def test_an_index_of_other_lengths_does_not_open(tmp_path: Path, make_dataset: Callable[..., Path]) -> None:
    """Same size of every file, other split: the index's own sum is compared with the tokens."""
    prefix = make_dataset(tmp_path / "x", [([1, 2], 0, 0), ([3], 0, 0)])
    make_dataset(tmp_path / "y", [([1, 2], 0, 0), ([3, 4], 0, 0)])
    (tmp_path / "x.idx").write_bytes((tmp_path / "y.idx").read_bytes())
    with pytest.raises(DamagedError, match=r"x\.bin: wrong size"):
        IndexedDataset(prefix)


def test_checksums_are_per_block(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "x", 600, block_bytes=64) as writer:
        writer.add(list(range(100)), 0, 0, 0)
        manifest = writer.finish({})
    assert len(manifest.files["x.bin"].blocks) == 4  # 200 bytes
    verify_manifest(tmp_path / "x.manifest.json")


class Crash(RuntimeError):
    pass


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("step", range(5))
def test_a_crash_between_files_leaves_no_readable_mixture(
    tmp_path: Path, make_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, step: int, old: bool
) -> None:
    """Renames are .bin, .parts, .idx, the lineage and the manifest; each fails in turn."""
    prefix = tmp_path / "x"
    if old:  # of the same sizes, so that only the order of things can save the reader
        make_dataset(prefix, [([1, 2, 3], 0, 0)])
    replace, calls = os.replace, []

    def crash(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == step + 1:
            raise Crash
        replace(source, target)

    def rewrite() -> None:
        with IndexedWriter(prefix, 600) as writer:
            writer.add([4, 5, 6], 0, 0, 0)
            writer.temporary("lineage.parquet").write_bytes(b"lineage")
            writer.finish({}, extras=("lineage.parquet",))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(Crash):
            rewrite()
    with pytest.raises(InputError, match="no manifest"):
        IndexedDataset(prefix)
    assert not list(tmp_path.glob(".tmp-*"))
    rewrite()
    assert len(calls) == step + 1
    assert IndexedDataset(prefix).sequence(0).tolist() == [4, 5, 6]


def test_an_old_dataset_stays_until_the_new_one_is_whole(
    tmp_path: Path, make_dataset: Callable[..., Path]
) -> None:
    prefix = make_dataset(tmp_path / "x", [([1, 2, 3], 0, 0)])
    with IndexedWriter(prefix, 600) as writer:
        writer.add([4], 0, 0, 0)
    assert IndexedDataset(prefix).sequence(0).tolist() == [1, 2, 3]
    verify_manifest(tmp_path / "x.manifest.json")


def test_extras_are_covered_and_old_ones_go(tmp_path: Path) -> None:
    for extras in (("lineage.parquet", "quarantine.jsonl"), ("lineage.parquet",)):
        with IndexedWriter(tmp_path / "x", 600) as writer:
            writer.add([4], 0, 0, 0)
            for suffix in extras:
                writer.temporary(suffix).write_bytes(b"data")
            manifest = writer.finish({}, extras)
        on_disk = {path.name for path in tmp_path.iterdir()}
        assert on_disk == {*manifest.files, "x.manifest.json"}
        assert set(manifest.files) == {f"x.{suffix}" for suffix in (*CORE, *extras)}
    (tmp_path / "x.lineage.parquet").write_bytes(b"dat")
    with pytest.raises(DamagedError, match=r"x\.lineage\.parquet: wrong size"):
        IndexedDataset(tmp_path / "x")
