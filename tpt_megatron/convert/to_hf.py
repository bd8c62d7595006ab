"""A checkpoint step as a Hugging Face folder: safetensors, config.json, tokenizer, manifest."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tpt_megatron.artifact import (
    MANIFEST_SUFFIX,
    manifest_of_files,
    publish_folder,
    temporary_beside,
    write_manifest,
    write_text,
)
from tpt_megatron.config.load import resolved
from tpt_megatron.config.schema import Config
from tpt_megatron.convert.shards import StepReader
from tpt_megatron.convert.tensors import to_theirs
from tpt_megatron.errors import InputError
from tpt_megatron.models.family import family_of
from tpt_megatron.tokenizer import TextTokenizer

SHARD_BYTES = 4 * 2**30
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class ConvertSummary:
    tensors: int
    parameters: int
    gigabytes: float
    folder: Path
    tokenizer: str  # "" where none was copied


def to_hf(
    step_folder: Path, hf_folder: Path, dtype: str = "bf16", tokenizer: str | None = None
) -> ConvertSummary:
    """Write `hf_folder` from the step; it appears whole or not at all.

    dtype "bf16" or "fp32"; tokenizer: a folder or name, None: the one in the run's config.
    Raises InputError for an existing folder or a missing tensor, DamagedError for a step that is damaged.
    """
    if dtype not in DTYPES:
        raise InputError("dtype", got=repr(dtype), expected=" or ".join(DTYPES))
    if hf_folder.exists():
        raise InputError(f"{hf_folder}: exists already", fix="remove it or give another folder")
    reader = StepReader(step_folder)
    config = resolved(step_folder / "config.json")
    temporary = temporary_beside(hf_folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        written = _write_weights(reader, config, temporary, DTYPES[dtype])
        name = config.data.tokenizer if tokenizer is None else tokenizer
        _write_configs(config, temporary, dtype, TextTokenizer(name) if name else None)
        about = {"step": step_folder.name, "family": config.model.family, "dtype": dtype, "tokenizer": name}
        write_manifest(temporary / MANIFEST_SUFFIX, manifest_of_files(temporary, "hf", about))
        publish_folder(temporary, hf_folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    size = sum(f.stat().st_size for f in hf_folder.iterdir())
    return ConvertSummary(len(written), sum(written.values()), size / 1e9, hf_folder, name)


def _write_weights(reader: StepReader, config: Config, folder: Path, dtype: torch.dtype) -> dict[str, int]:
    """Safetensors shards of at most SHARD_BYTES and their index; the number of values of each tensor."""
    shards: list[list[str]] = []
    waiting: dict[str, Tensor] = {}
    waiting_bytes, values = 0, dict[str, int]()

    def flush() -> None:
        save_file(waiting, folder / f"part-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(waiting))
        waiting.clear()

    for rule in family_of(config.model).rules_of(config.model):
        for name, tensor in to_theirs(rule, reader.read(rule.ours), config.model):
            tensor = tensor.to(dtype)
            if waiting and waiting_bytes + tensor.nbytes > SHARD_BYTES:
                flush()
                waiting_bytes = 0
            waiting[name] = tensor
            waiting_bytes += tensor.nbytes
            values[name] = tensor.numel()
    flush()
    _name_shards(folder, shards, sum(values.values()) * dtype.itemsize)
    return values


def _name_shards(folder: Path, shards: list[list[str]], total_bytes: int) -> None:
    if len(shards) == 1:
        (folder / "part-0").rename(folder / "model.safetensors")
        return
    where: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"part-{number}").rename(folder / file)
        where.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total_bytes}, "weight_map": where}
    write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=1) + "\n")


def _write_configs(config: Config, folder: Path, dtype: str, tokenizer: TextTokenizer | None) -> None:
    body: dict[str, Any] = family_of(config.model).hf_config(config.model)
    body["dtype"] = str(DTYPES[dtype]).removeprefix("torch.")
    generation: dict[str, Any] = {}
    if tokenizer is not None:
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if (identity := getattr(tokenizer.hf, key)) is not None:
                body[key] = generation[key] = identity
        for file in tokenizer.files():
            shutil.copyfile(file, folder / file.name)
    write_text(folder / "config.json", json.dumps(body, indent=1) + "\n")
    write_text(folder / "generation_config.json", json.dumps(generation, indent=1) + "\n")
