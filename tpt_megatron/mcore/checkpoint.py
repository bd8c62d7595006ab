"""Sharded checkpoints that any layout loads: megatron-core's torch_dist files, a manifest written last.

FOLDER/step-00001000/  __0_0.distcp ... .metadata common.pt   (model, optimizer)
                       state.json    step, consumed samples and tokens
                       config.json   the resolved config
                       manifest.json a SHA-256 per file
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist
from megatron.core import dist_checkpointing

from tpt_megatron.artifact import (
    MANIFEST_SUFFIX,
    TEMPORARY,
    manifest_of_files,
    publish_folder,
    verify_manifest,
    write_manifest,
    write_text,
)
from tpt_megatron.config.load import dump
from tpt_megatron.errors import DamagedError, InputError
from tpt_megatron.mcore.engine import Engine

KIND = "checkpoint"
SHARDING = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": True,
}


@dataclass(frozen=True)
class TrainState:
    """Where a run stands; the order of samples is a function of the seed, so this is all of it."""

    step: int = 0
    consumed_samples: int = 0
    consumed_tokens: int = 0


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def save(engine: Engine, folder: Path, state: TrainState) -> Path:
    """Write `folder`/step-N; every rank calls it. A step that is there already is left as it is."""
    final = folder / step_name(state.step)
    temporary = folder / f"{TEMPORARY}{final.name}"
    if final.exists():
        return final
    if engine.grid.rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    model = engine.stage.sharded_state_dict()
    shards = {"model": model, "optimizer": engine.optimizer.sharded_state_dict(model, metadata=SHARDING)}
    dist_checkpointing.save(shards, str(temporary))
    dist.barrier()
    if engine.grid.rank == 0:
        write_text(temporary / "state.json", json.dumps(asdict(state), indent=1) + "\n")
        write_text(temporary / "config.json", dump(engine.config))
        about = {
            **asdict(state),
            "ranks": engine.grid.world_size,
            "parallel": engine.config.parallel.model_dump(),
        }
        write_manifest(temporary / MANIFEST_SUFFIX, manifest_of_files(temporary, KIND, about))
        publish_folder(temporary, final)
    dist.barrier()
    return final


def load(engine: Engine, step_folder: Path) -> TrainState:
    """Fill model and optimizer from a verified step, whatever layout wrote it; every rank calls it."""
    model = engine.stage.sharded_state_dict()
    shards = {
        "model": model,
        "optimizer": engine.optimizer.sharded_state_dict(model, is_loading=True, metadata=SHARDING),
    }
    loaded = dist_checkpointing.load(shards, str(step_folder))
    engine.stage.load_state_dict(loaded["model"])
    engine.optimizer.load_state_dict(loaded["optimizer"])
    return read_state(step_folder)


def read_state(step_folder: Path) -> TrainState:
    try:
        return TrainState(**json.loads((step_folder / "state.json").read_text()))
    except FileNotFoundError:
        raise InputError(f"{step_folder}: not a checkpoint step (no state.json)") from None


def newest_sound(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest step whose every byte matches its manifest; a damaged one is named and passed over."""
    for step in sorted(folder.glob("step-*"), reverse=True):
        try:
            verify_manifest(step / MANIFEST_SUFFIX)
        except (DamagedError, InputError) as error:
            warn(f"checkpoint passed over: {error}")
        else:
            return step
    return None
