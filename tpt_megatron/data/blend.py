"""Which dataset the n-th sample comes from: constant time, constant memory, exact shares.

A cycle of slots is filled once; sample n takes slot n modulo the cycle.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tpt_megatron.errors import ConfigError

CYCLE = 2**20  # shares are exact to half a slot: 0.00005%

Indices = npt.NDArray[np.int64]


class Blend:
    """A spread of datasets by weight, the same for every seed and world size."""

    def __init__(self, weights: Sequence[float]) -> None:
        """`weights`, of samples, need not sum to one; raises ConfigError for a share below one slot of the
        cycle."""
        if not weights or min(weights) <= 0 or not np.isfinite(weights).all():
            raise ConfigError("data.blend: every weight must be positive and finite", got=list(weights))
        cycle = CYCLE if len(weights) > 1 else 1
        self.counts = _slots_per_dataset(weights, cycle)
        if not self.counts.all():
            index = int(np.argmin(self.counts))
            raise ConfigError(
                f"data.blend: the share of dataset {index} rounds to nothing",
                got=f"weight {weights[index]} of {sum(weights)}",
                expected=f"at least 1/{cycle} of the whole",
            )
        dataset = np.repeat(np.arange(len(weights)), self.counts)
        number = np.concatenate([np.arange(count) for count in self.counts])
        order = np.argsort((number + 0.5) / self.counts[dataset], kind="stable")
        self._dataset = dataset[order].astype(np.int32)  # [cycle]
        self._number = number[order].astype(np.int32)  # [cycle] how often the dataset came before

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """The part of all samples that each dataset gives, [datasets]."""
        return self.counts / self.counts.sum()

    def locate(self, sample: int) -> tuple[int, int]:
        """The dataset's index, and the sample's number among that dataset's own samples (from 0)."""
        cycle, slot = divmod(sample, len(self._dataset))
        dataset = int(self._dataset[slot])
        return dataset, cycle * int(self.counts[dataset]) + int(self._number[slot])

    def locate_many(self, samples: Indices) -> tuple[Indices, Indices]:
        """`locate` of each of `samples` [n]: datasets [n] and numbers [n]."""
        cycle, slot = np.divmod(samples, len(self._dataset))
        dataset = self._dataset[slot].astype(np.int64)
        return dataset, cycle * self.counts[dataset] + self._number[slot]


def _slots_per_dataset(weights: Sequence[float], cycle: int) -> Indices:
    """Whole numbers that sum to `cycle`, nearest to the weights: the largest remainders are rounded up."""
    shares = np.asarray(weights, dtype=np.float64)
    ideal = shares / shares.sum() * cycle
    counts = np.floor(ideal).astype(np.int64)
    rest = cycle - int(counts.sum())
    counts[np.argsort(counts - ideal, kind="stable")[:rest]] += 1
    return counts
