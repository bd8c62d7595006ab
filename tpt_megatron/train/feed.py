"""From sample numbers to micro-batches: which rank trains on which sample, the same whatever the layout."""

from collections.abc import Iterator

import numpy as np
import torch

from tpt_megatron.data.dataset import Sample, Samples
from tpt_megatron.mcore.batch import Batch


def micro_batches(
    samples: Samples,
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
        yield collate([samples[start + i] for i in range(micro_batch_size)])


def collate(samples: list[Sample]) -> Batch:
    """Samples laid end to end; no document reaches over the end of its sample."""
    lengths = np.cumsum([0] + [len(s.tokens) for s in samples])
    bounds = [s.cu_seqlens[:-1] + offset for s, offset in zip(samples, lengths, strict=False)]
    cu_seqlens = np.concatenate([*bounds, lengths[-1:]]).astype(np.int32)
    return Batch(
        tokens=torch.from_numpy(np.concatenate([s.tokens for s in samples])),
        labels=torch.from_numpy(np.concatenate([s.labels for s in samples])),
        positions=torch.from_numpy(np.concatenate([s.positions for s in samples])),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        max_seqlen=int(np.diff(cu_seqlens).max()),
        thinking=torch.from_numpy(np.concatenate([s.thinking for s in samples])),
    )
