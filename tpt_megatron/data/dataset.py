"""Training samples: windows of packed datasets, blended and shuffled without a table.

Sample i is a pure function of (seed, i): to resume is to remember how many were consumed, on any number
of ranks. Opening takes the same time and memory whatever the size of the data.
"""

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tpt_megatron.config.schema import DataConfig
from tpt_megatron.data.blend import Blend
from tpt_megatron.data.indexed import IndexedDataset
from tpt_megatron.data.permutation import Permutation
from tpt_megatron.errors import ConfigError, DamagedError, InputError

IGNORED = -100  # the label that carries no loss


@dataclass(frozen=True)
class Sample:
    """One row of a batch; S is `data.sequence_length`."""

    tokens: npt.NDArray[np.int64]  # [S]
    labels: npt.NDArray[np.int64]  # [S] the next token, IGNORED where it belongs to another document
    positions: npt.NDArray[np.int64]  # [S]
    cu_seqlens: npt.NDArray[np.int32]  # [documents + 1] from 0 to S; [0, S] without data.document_mask
    thinking: npt.NDArray[np.bool_]  # [S] the label is part of a thought; False where it is ignored


class Samples:
    """The endless, indexable order of samples of `data.blend`.

    Packing is "concat": the tokens of a dataset in a row, cut every S tokens; window w reads tokens w*S to
    w*S + S, the last one as a label only. What is left at the end of a dataset is dropped. An epoch of a
    dataset is every window once, in an order of its own.
    """

    def __init__(self, data: DataConfig, seed: int, vocab_size: int) -> None:
        """Raises ConfigError, naming data.blend, for datasets that do not go together or with the model;
        InputError for one that is shorter than a window."""
        if not data.blend:
            raise ConfigError("data.blend is empty", expected='[["PREFIX", 1.0]]', fix="set data.blend")
        self._data, self._seed = data, seed
        self._blend = Blend([weight for _, weight in data.blend])
        self._datasets = [IndexedDataset(Path(prefix)) for prefix, _ in data.blend]
        self._vocab_sizes = [int(_tokenizer(dataset)["vocab_size"]) for dataset in self._datasets]
        self._windows = [self._count_windows(dataset) for dataset in self._datasets]
        self._check_tokenizers(vocab_size)

    def _count_windows(self, dataset: IndexedDataset) -> int:
        windows = (dataset.num_tokens - 1) // self._data.sequence_length
        if windows < 1:
            raise InputError(
                f"{dataset.prefix}: too short for one window of data.sequence_length",
                got=f"{dataset.num_tokens} tokens", expected=f"more than {self._data.sequence_length}",
            )  # fmt: skip
        return windows

    def _check_tokenizers(self, vocab_size: int) -> None:
        first = _tokenizer(self._datasets[0])
        for dataset, own_size in zip(self._datasets, self._vocab_sizes, strict=True):
            own = _tokenizer(dataset)
            if own["fingerprint"] != first["fingerprint"]:
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
        if index < 0:
            raise IndexError(f"samples are counted from 0, got {index}")
        source, number = self._blend.locate(index)
        epoch, place = divmod(number, self._windows[source])
        window = Permutation(self._windows[source], self._seed, epoch, source)[place]
        return self._window(source, window)

    def _window(self, source: int, window: int) -> Sample:
        dataset, length = self._datasets[source], self._data.sequence_length
        start = window * length
        stream = dataset.read(start, length + 1).astype(np.int64)  # [S + 1]
        if (high := int(stream.max())) >= self._vocab_sizes[source] or stream.min() < 0:
            raise DamagedError(
                f"{dataset.prefix}.bin: window {window} holds an id outside its vocabulary",
                got=high, expected=f"below {self._vocab_sizes[source]}", fix="run `tpt verify` on it",
            )  # fmt: skip
        tokens, labels = stream[:-1].copy(), stream[1:].copy()
        first = bisect_right(dataset.offsets, start) - 1  # the sequence that token `start` is in
        last = bisect_right(dataset.offsets, start + length)  # one past that of the last label
        starts = dataset.offsets[first:last] - start  # [sequences] in tokens of this window
        thinking = _thinking(starts, dataset.parts[first:last], length)
        if not self._data.document_mask:
            cu_seqlens = np.array([0, length], dtype=np.int32)
            return Sample(tokens, labels, np.arange(length, dtype=np.int64), cu_seqlens, thinking)
        crossing = starts[1:] - 1  # the labels that are the first token of the next document
        labels[crossing] = IGNORED
        thinking[crossing] = False
        inner = starts[1:][starts[1:] < length]  # a document may start at the last label, outside the input
        bounds = np.concatenate(([0], inner, [length]))
        positions = np.arange(length, dtype=np.int64) - np.repeat(bounds[:-1], np.diff(bounds))
        return Sample(tokens, labels, positions, bounds.astype(np.int32), thinking)

    def describe(self) -> dict[str, Any]:
        """What a run's log and report say about its data."""
        tokenizer = _tokenizer(self._datasets[0])
        datasets = [
            {"prefix": str(d.prefix), "weight": weight, "tokens": d.num_tokens,
             "windows": windows, "sequences": d.num_sequences}
            for d, (_, weight), windows in zip(self._datasets, self._data.blend, self._windows, strict=True)
        ]  # fmt: skip
        return {
            "tokens": sum(d.num_tokens for d in self._datasets),
            "windows": sum(self._windows),
            "datasets": datasets,
            "tokenizer": {"name": tokenizer["name"], "fingerprint": tokenizer["fingerprint"]},
        }


def _tokenizer(dataset: IndexedDataset) -> dict[str, Any]:
    facts = dataset.manifest.about.get("tokenizer")
    if not isinstance(facts, dict) or not {"name", "fingerprint", "vocab_size"} <= set(facts):
        raise InputError(f"{dataset.prefix}: its manifest does not say which tokenizer made it")
    return facts


def _thinking(starts: npt.NDArray[np.int64], parts: npt.NDArray[Any], length: int) -> npt.NDArray[np.bool_]:
    """Which labels are part of a thought; [S]. `starts` [sequences] may lie before the window."""
    steps = np.zeros(length + 1, dtype=np.int64)
    # -1: label p is token p + 1.
    np.add.at(steps, np.clip(starts + parts["thinking_start"] - 1, 0, length), 1)
    np.subtract.at(steps, np.clip(starts + parts["thinking_end"] - 1, 0, length), 1)
    inside: npt.NDArray[np.bool_] = np.cumsum(steps[:-1]) > 0
    return inside
