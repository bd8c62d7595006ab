"""From sample numbers to micro-batches: which rank trains on which sample, the same whatever the layout."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from tpt_megatron.data.sample import SampleBatch
from tpt_megatron.mcore.batch import Batch


class SampleSource(Protocol):
    """What training reads: data/dataset.py's Samples, or a test's own."""

    def batch(self, indices: Sequence[int]) -> SampleBatch: ...


def micro_batches(
    samples: SampleSource,
    first: int,
    global_batch_size: int,
    micro_batch_size: int,
    data_rank: int,
    data_size: int,
) -> Iterator[Batch]:
    """This data rank's share of the samples [first, first + global_batch_size): a contiguous part of them."""
    share = global_batch_size // data_size
    begin = first + data_rank * share
    for start in range(begin, begin + share, micro_batch_size):
        yield as_row(samples.batch(range(start, start + micro_batch_size)))


def as_row(batch: SampleBatch) -> Batch:
    """Samples laid end to end; no document reaches over the end of its sample."""
    return Batch(
        tokens=torch.from_numpy(batch.tokens.reshape(-1)),
        labels=torch.from_numpy(batch.labels.reshape(-1)),
        positions=torch.from_numpy(batch.positions.reshape(-1)),
        cu_seqlens=torch.from_numpy(batch.cu_seqlens),
        max_seqlen=batch.max_seqlen,
        thinking=torch.from_numpy(batch.thinking.reshape(-1)),
    )
