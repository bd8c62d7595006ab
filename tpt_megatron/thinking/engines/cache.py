"""Keys and values of the running rows: one slot a row, each as long as it is, refilled without padding."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

FIRST_CAPACITY = 256  # tokens a slot holds at first; doubled when a row outgrows it


@dataclass
class Step:
    """Where this step writes and what it reads; shared by all layers."""

    columns: Tensor  # [rows] int64: a row's new token goes behind its others
    width: int  # columns that are read: one more than the largest of `columns`


class SlotLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped
    """One layer's slots: keys and values [slots, kv_heads, capacity, head_dim]."""

    def __init__(self, step: Step, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.step, self.keys, self.values = step, keys, values
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store new tokens [rows, kv_heads, 1, head_dim]; returns [rows, kv_heads, width, head_dim] views."""
        columns, rows = self.step.columns, len(key_states)
        index = torch.arange(rows, device=columns.device)
        self.keys[index, :, columns] = key_states[:, :, 0]
        self.values[index, :, columns] = value_states[:, :, 0]
        return self.keys[:rows, :, : self.step.width], self.values[:rows, :, : self.step.width]


class SlotCache:
    """`slots` rows of keys and values for all layers; row i of a step lives in slot i."""

    def __init__(self, slots: int) -> None:
        self.slots, self.capacity = slots, 0
        self.step = Step(torch.zeros(0, dtype=torch.int64), 0)
        self.layers: list[SlotLayer] = []

    @property
    def as_past(self) -> Cache:
        """What a transformers model takes as `past_key_values`."""
        return Cache(layers=self.layers)

    def admit(self, slot: int, prompt: Cache, row: int, length: int) -> None:
        """Copy the last `length` columns (the others are padding) of the prompt cache's `row` into `slot`."""
        self._reserve(length + 1, prompt)
        for mine, theirs in zip(self.layers, prompt.layers, strict=True):
            mine.keys[slot, :, :length] = theirs.keys[row, :, -length:]
            mine.values[slot, :, :length] = theirs.values[row, :, -length:]

    def move(self, source: int, target: int, length: int) -> None:
        """Let `target` hold what `source` holds: how the rows close ranks when one ends."""
        for layer in self.layers:
            layer.keys[target, :, :length] = layer.keys[source, :, :length]
            layer.values[target, :, :length] = layer.values[source, :, :length]

    def begin_step(self, columns: Tensor, width: int) -> None:
        """Say where the next forward writes (`columns` [rows]) and how wide it reads."""
        self.step.columns, self.step.width = columns, width
        self._reserve(width, None)

    def _reserve(self, width: int, like: Cache | None) -> None:
        """Make every slot at least `width` tokens long; `like` gives the shapes the first time."""
        if width <= self.capacity:
            return
        old, self.capacity = self.capacity, max(FIRST_CAPACITY, 2 * self.capacity, width)
        if not self.layers:
            assert like is not None
            self.layers = [
                SlotLayer(self.step, self._slots(x.keys), self._slots(x.values)) for x in like.layers
            ]
            return
        for layer in self.layers:
            for name in ("keys", "values"):
                before = getattr(layer, name)
                after = self._slots(before)
                after[:, :, :old] = before
                setattr(layer, name, after)

    def _slots(self, like: Tensor) -> Tensor:
        # Zeros, not empty: a masked column still meets a weight of 0, and 0 * NaN is NaN.
        return like.new_zeros(self.slots, like.shape[1], self.capacity, like.shape[3])
