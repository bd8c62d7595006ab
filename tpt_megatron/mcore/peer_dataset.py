"""megatron-core's own training dataset, as a peer in the samples' benchmark."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split


class NamedTokenizer:
    """What GPTDataset asks of a tokenizer: numbers and a name for its cache."""

    eod = eos = 0
    pad = 1
    unique_identifiers: ClassVar[dict[str, str]] = {"class": "none"}
    special_tokens_dict: ClassVar[dict[str, str]] = {}

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size


def gpt_dataset(prefix: Path, cache: Path, sequence_length: int, vocab_size: int) -> Any:
    """One epoch over the dataset `prefix`, with neither positions nor masks per document.

    Builds its index, or reads it where `cache` has it.
    """
    settings = GPTDatasetConfig(
        random_seed=1, sequence_length=sequence_length, split="1,0,0", blend=([str(prefix)], None),
        path_to_cache=str(cache), tokenizer=NamedTokenizer(vocab_size), reset_position_ids=False,
        reset_attention_mask=False, eod_mask_loss=False, create_attention_mask=False,
    )  # fmt: skip
    indexed = IndexedDataset(str(prefix))
    documents = np.arange(len(indexed), dtype=np.int32)
    return GPTDataset(indexed, str(prefix), documents, None, Split.train, settings)
