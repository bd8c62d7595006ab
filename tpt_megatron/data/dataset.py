"""Training samples: rows of packed datasets, blended and shuffled without a table.

Sample i is a pure function of (seed, i): to resume is to remember how many were consumed, on any number
of ranks. Opening takes the same time and memory whatever the size of the data.
"""

import errno
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tpt_megatron.config.schema import DataConfig
from tpt_megatron.data.bins import Bins
from tpt_megatron.data.blend import Blend
from tpt_megatron.data.buffers import Buffers
from tpt_megatron.data.cache import local_prefix
from tpt_megatron.data.indexed import IndexedDataset, Integers
from tpt_megatron.data.layout import dataset_file
from tpt_megatron.data.permutation import Permutation
from tpt_megatron.data.sample import IGNORED, PADDING, Bools, Documents, Indices, Int32s, Sample, SampleBatch
from tpt_megatron.data.window import Windows
from tpt_megatron.errors import ConfigError, DamagedError, InputError
from tpt_megatron.records import stable_hash

PLACES = 1024  # of an order are made at once: a tenth of the time of one by one


class Samples:
    """The endless, indexable order of samples of `data.blend`.

    An epoch of a dataset is every row of its packing (window.py, bins.py) once, in an order of its own.
    """

    def __init__(self, data: DataConfig, seed: int, vocab_size: int) -> None:
        """Raises ConfigError, naming the key, for datasets that do not go together, with the model or with
        data.packing; InputError for one that is shorter than a window."""
        if not data.blend:
            raise ConfigError("data.blend is empty", expected='[["PREFIX", 1.0]]', fix="set data.blend")
        self._data, self._seed = data, seed
        self._datasets = [_open(local_prefix(prefix, data.cache_dir)) for prefix, _ in data.blend]
        self._vocab_sizes = [int(_tokenizer(dataset)["vocab_size"]) for dataset in self._datasets]
        self._check_tokenizers(vocab_size)
        pack = Bins if data.packing == "best_fit" else Windows
        self._packings = [pack(dataset, data.sequence_length) for dataset in self._datasets]
        self._rows = np.array([packing.count for packing in self._packings])  # [datasets] an epoch
        always = data.document_mask or data.packing == "best_fit"
        self._masked = np.array([always or d.manifest.about.get("style") == "chat" for d in self._datasets])
        self._has_mask = any(dataset.has("mask") for dataset in self._datasets)
        self._blend = Blend(self._sample_weights())
        self._orders: dict[int, tuple[int, int, Indices]] = {}  # of each dataset: epoch, block, its places
        self._buffers = Buffers()

    def _sample_weights(self) -> list[float]:
        """How many samples each dataset gives, from the weights in data.weight_unit.

        A token weight is a share of tokens: of samples, times what padding takes. A document weight is a
        share of documents, so of tokens in proportion to the documents' mean length.
        """
        by_document = self._data.weight_unit == "document"
        return [
            weight
            * (dataset.num_tokens / max(dataset.num_sequences, 1) if by_document else 1.0)
            / packing.fill_fraction
            for (_, weight), dataset, packing in zip(
                self._data.blend, self._datasets, self._packings, strict=True
            )
        ]

    def _check_tokenizers(self, vocab_size: int) -> None:
        first = _tokenizer(self._datasets[0])
        for dataset, own_size in zip(self._datasets, self._vocab_sizes, strict=True):
            own = _tokenizer(dataset)
            if own["fingerprint"] != first["fingerprint"] or dataset.dtype != self._datasets[0].dtype:
                pair = f"{dataset.prefix} and {self._datasets[0].prefix}"
                raise ConfigError(
                    f"data.blend: {pair} were packed with different tokenizers",
                    got=f"{own['name']} ({own['fingerprint'][:12]})",
                    expected=f"{first['name']} ({first['fingerprint'][:12]})",
                    fix="pack both with one tokenizer",
                )
            if own_size > vocab_size:
                raise ConfigError(
                    f"data.blend: {dataset.prefix} has a larger vocabulary than the model",
                    got=own_size, expected=f"model.vocab_size {vocab_size} or fewer",
                    fix=f"model.vocab_size={own_size}",
                )  # fmt: skip

    def __getitem__(self, index: int) -> Sample:
        """Sample `index` (0 or more, without end)."""
        return self.batch([index])[0]

    def batch(self, indices: Sequence[int] | Indices) -> SampleBatch:
        """The samples `indices` [B], in that order: 64 at once cost a tenth of one by one."""
        numbers = np.asarray(indices, dtype=np.int64)
        if not numbers.size or numbers.min() < 0:
            raise IndexError(f"samples are counted from 0, got {list(indices)}")
        source, number = self._blend.locate_many(numbers)
        stream, *outputs = self._arrays(len(numbers))
        trained = np.ones(stream.shape, dtype=np.bool_) if self._has_mask else None
        pieces = []
        for index in sorted(set(source.tolist())):
            rows = np.flatnonzero(source == index)
            places = self._shuffled(index, number[rows])
            pieces.append(self._packings[index].fill(places, rows, stream, trained))
        row, begin, sequence, skip = (
            np.concatenate([getattr(piece, name) for piece in pieces])
            for name in ("row", "begin", "sequence", "skip")
        )
        order = slice(None) if len(pieces) == 1 else np.argsort(row, kind="stable")
        row, begin, sequence, skip = row[order], begin[order], sequence[order], skip[order]
        documents = Documents(row, begin, sequence, skip, source[row], self._datasets)
        self._check_ids(stream, source)
        return self._finish(stream, trained, documents, outputs)

    def _arrays(self, rows: int) -> tuple[Integers, Int32s, Int32s, Int32s]:
        """The stream [B, S + 1], and tokens, labels and positions [B, S], in one block of memory."""
        length, dtype = self._data.sequence_length, self._datasets[0].dtype
        size = 4 * rows * length
        block = self._buffers.take(3 * size + rows * (length + 1) * dtype.itemsize)
        tokens, labels, positions = block[: 3 * size].view(np.int32).reshape(3, rows, length)
        return block[3 * size :].view(dtype).reshape(rows, length + 1), tokens, labels, positions

    def _shuffled(self, source: int, number: Indices) -> Indices:
        """The rows of dataset `source` that its own samples `number` [n] are."""
        out = np.empty_like(number)
        epoch, place = np.divmod(number, self._rows[source])
        block, inner = np.divmod(place, PLACES)
        for one in sorted(set(zip(epoch.tolist(), block.tolist(), strict=True))):
            own = (epoch == one[0]) & (block == one[1])
            out[own] = self._order(source, *one)[inner[own]]
        return out

    def _order(self, source: int, epoch: int, block: int) -> Indices:
        """Places block * PLACES and after of one epoch's order, [PLACES or fewer]."""
        kept = self._orders.get(source)
        if kept is None or kept[:2] != (epoch, block):
            count = int(self._rows[source])
            places = np.arange(block * PLACES, min((block + 1) * PLACES, count))
            kept = epoch, block, Permutation(count, self._seed, epoch, source).many(places)
            self._orders[source] = kept
        return kept[2]

    def _check_ids(self, stream: Integers, source: Indices) -> None:
        # As unsigned numbers, so that a negative id is a high one: one pass, 0.5 us a row.
        ids = stream.view(f"u{stream.dtype.itemsize}")
        if ids.max() < min(self._vocab_sizes):
            return
        for row, index in enumerate(source.tolist()):
            if (high := int(ids[row].max())) >= self._vocab_sizes[index]:
                raise DamagedError(
                    f"{self._datasets[index].prefix}.bin holds an id outside its vocabulary",
                    got=int(stream[row][ids[row].argmax()]) if high > 2**31 else high,
                    expected=f"0 to {self._vocab_sizes[index] - 1}", fix="run `tpt verify` on it",
                )  # fmt: skip

    def _finish(
        self, stream: Integers, trained: Bools | None, documents: Documents, outputs: Sequence[Int32s]
    ) -> SampleBatch:
        rows, length = len(stream), self._data.sequence_length
        tokens, labels, positions = outputs  # [B, S]
        tokens[:], labels[:] = stream[:, :-1], stream[:, 1:]
        begin, masked = documents.begin, self._masked[documents.dataset]
        flat = documents.row * length + begin
        if trained is not None:
            labels[~trained[:, 1:]] = IGNORED
        labels.reshape(-1)[flat[masked & (begin > 0)] - 1] = IGNORED  # the first tokens of other documents
        for piece in np.flatnonzero(documents.sequence == PADDING).tolist():
            labels[documents.row[piece], begin[piece] :] = IGNORED
        starts = flat[(begin < length) & (masked | (begin == 0))]
        bounds = np.append(starts, rows * length)
        sizes = np.diff(bounds)
        if sizes.min() < 1:
            prefix = self._datasets[int(documents.dataset[0])].prefix
            raise DamagedError(
                f"{prefix}.idx: its sequences do not follow each other", fix="run `tpt verify`"
            )
        _count_up(positions, starts)
        return SampleBatch(tokens, labels, positions, bounds.astype(np.int32), int(sizes.max()), documents)

    @property
    def samples_per_epoch(self) -> int:
        """Samples until every dataset has been read once at least."""
        return int(np.ceil(self._rows / self._blend.shares).max())

    def epochs(self, samples: int) -> list[float]:
        """How often each dataset has been read after the first `samples`."""
        return [float(e) for e in samples * self._blend.shares / self._rows]

    def describe(self) -> dict[str, Any]:
        """What the samples are of: RUN/data.json says it (train/order.py)."""
        tokenizer = _tokenizer(self._datasets[0])
        datasets = [
            {"prefix": prefix, "weight": weight, "share": float(share), "tokens": dataset.num_tokens,
             "windows": packing.count, "sequences": dataset.num_sequences, "bytes": _digest(dataset),
             "samples_per_epoch": int(np.ceil(packing.count / share))}
            for (prefix, weight), share, dataset, packing in zip(
                self._data.blend, self._blend.shares, self._datasets, self._packings, strict=True)
        ]  # fmt: skip
        return {
            "tokens": sum(d.num_tokens for d in self._datasets),
            "windows": int(self._rows.sum()),
            "packing": self._data.packing,
            "weight_unit": self._data.weight_unit,
            "samples_per_epoch": self.samples_per_epoch,
            "datasets": datasets,
            "tokenizer": {"name": tokenizer["name"], "fingerprint": tokenizer["fingerprint"]},
        }


def _open(prefix: Path) -> IndexedDataset:
    try:
        return IndexedDataset(prefix)
    except OSError as error:
        fix = "raise the limit: ulimit -n 65536" if error.errno == errno.EMFILE else None
        raise InputError(f"data.blend: cannot open {prefix}: {error.strerror}", fix=fix) from error


def _count_up(positions: Int32s, starts: Indices) -> None:
    """Fill `positions` [B, S] with 0, 1, 2, ... from each of `starts` (ascending, the first is 0) on."""
    flat = positions.reshape(-1)
    if len(starts) > 8 * len(positions):  # many short documents: 5 us a sample, whatever their number
        flat[:] = 1
        flat[starts[1:]] = 1 - np.diff(starts)
        flat[0] = 0
        np.cumsum(flat, dtype=np.int32, out=flat)
        return
    # Slices of memoryviews: 2.2 us a sample of five documents, those of arrays 3.8.
    target, count = memoryview(flat), memoryview(np.arange(positions.shape[1], dtype=np.int32))
    for low, high in pairwise([*starts.tolist(), len(flat)]):
        target[low:high] = count[: high - low]


def _digest(dataset: IndexedDataset) -> str:
    """Stands for the dataset's tokens, whatever its name: a hash of the checksums of `.bin` and `.idx`."""
    names = [dataset_file(dataset.prefix, suffix).name for suffix in ("bin", "idx")]
    return stable_hash([dataset.manifest.files[name].blocks for name in names])[:16]


def _tokenizer(dataset: IndexedDataset) -> dict[str, Any]:
    facts = dataset.manifest.about.get("tokenizer")
    if not isinstance(facts, dict) or not {"name", "fingerprint", "vocab_size"} <= set(facts):
        raise InputError(f"{dataset.prefix}: its manifest does not say which tokenizer made it")
    return facts
