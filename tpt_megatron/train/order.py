"""What a run's samples are of: a run that goes on with others would skip some documents and repeat others."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpt_megatron.artifact import write_text
from tpt_megatron.config.schema import Config
from tpt_megatron.data.dataset import Samples
from tpt_megatron.errors import ConfigError


def describe_order(samples: Samples, config: Config) -> dict[str, Any]:
    """All that the n-th sample depends on, and how often each dataset will have been read at the end."""
    facts = samples.describe()
    read = samples.epochs(config.train_steps * config.train.global_batch_size)
    for dataset, epochs in zip(facts["datasets"], read, strict=True):
        dataset["epochs_of_this_run"] = round(epochs, 3)
    return {
        **facts,
        "seed": config.train.seed,
        "sequence_length": config.data.sequence_length,
        "document_mask": config.data.document_mask,
    }


def keep_order(path: Path, facts: Mapping[str, Any], step: int, rank: int) -> None:
    """Rank 0 writes `facts` to `path`; a run that is past step 0 is refused, on all ranks, if they differ.

    Where a dataset lies, its name and the length of the run may change. Raises ConfigError naming the key.
    """
    if step and path.is_file():
        begun, now = _order(json.loads(path.read_bytes())), _order(facts)
        if changed := [key for key in now if begun.get(key) != now[key]]:
            key = changed[0]
            raise ConfigError(
                f"{path}: {step} steps were trained on other samples: {', '.join(changed)}",
                got=now[key], expected=begun.get(key),
                fix="change it back, or start another train.run_dir",
            )  # fmt: skip
    if rank == 0:
        write_text(path, json.dumps(facts, indent=1) + "\n")


def _order(facts: Mapping[str, Any]) -> dict[str, Any]:
    datasets = [{k: dataset[k] for k in ("weight", "sequences", "bytes")} for dataset in facts["datasets"]]
    keys = ("seed", "sequence_length", "document_mask", "packing", "weight_unit")
    return {**{key: facts[key] for key in keys}, "datasets": datasets}
