"""Reads the torch_dist files of a step tensor by tensor: no ranks, no GPU, and no pickle that could run code.

The metadata is a pickle, so only the classes it is known to hold may be built (facts-reliability.md, finding
2: a crafted one ran a command); the tensors are read with weights_only.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from tpt_megatron.artifact import MANIFEST_SUFFIX, verify_manifest
from tpt_megatron.errors import DamagedError, InputError

ALLOWED = {
    "torch": {"Size", "bfloat16", "float16", "float32", "float64", "int32", "int64", "uint8", "int8", "bool"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.planner": {"SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"},
}  # fmt: skip


class _Allowlisted(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if global_name not in ALLOWED.get(module_name, ()):
            raise pickle.UnpicklingError(f"blocked global {module_name}.{global_name}")
        return super().find_class(module_name, global_name)


class StepReader:
    """The tensors of one checkpoint step, by their names in the whole model.

    Opening verifies every byte against the manifest. Layers are stacked on disk: `decoder.layers.3.x` is
    index 3 of `decoder.layers.x`, and only that layer's pieces are read.
    """

    def __init__(self, step_folder: Path) -> None:
        verify_manifest(step_folder / MANIFEST_SUFFIX)
        self.folder = step_folder
        try:
            self._metadata: Metadata = _Allowlisted(
                io.BytesIO((step_folder / ".metadata").read_bytes())
            ).load()
        except FileNotFoundError:
            raise InputError(f"{step_folder}: not a torch_dist checkpoint (no .metadata)") from None
        except pickle.UnpicklingError as error:
            raise DamagedError(
                f"{step_folder / '.metadata'}: {error}", fix="do not load this checkpoint"
            ) from error

    def read(self, name: str) -> Tensor:
        """The whole tensor `name`, on the CPU; InputError where the step has none."""
        stored, layer = _stored_name(name)
        entry = self._metadata.state_dict_metadata.get(stored)
        if not isinstance(entry, TensorStorageMetadata):
            raise InputError(f"{self.folder}: no tensor {name!r}", fix="is model.family the run's own?")
        shape = entry.size if layer is None else entry.size[1:]
        whole = torch.empty(shape, dtype=entry.properties.dtype)
        filled = 0
        for chunk in entry.chunks:
            offsets, sizes = tuple(chunk.offsets), tuple(chunk.sizes)
            if layer is not None:
                if not offsets[0] <= layer < offsets[0] + sizes[0]:
                    continue
                piece = self._piece(stored, chunk.offsets)[layer - offsets[0]]
                offsets, sizes = offsets[1:], sizes[1:]
            else:
                piece = self._piece(stored, chunk.offsets)
            place = tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))
            whole[place] = piece
            filled += piece.numel()
        if filled != whole.numel():
            raise DamagedError(
                f"{self.folder}: {name}: pieces", got=f"{filled} values", expected=whole.numel()
            )
        return whole

    def _piece(self, stored: str, offset: torch.Size) -> Tensor:
        where = self._metadata.storage_data[MetadataIndex(stored, offset)]
        with open(self.folder / where.relative_path, "rb") as file:
            file.seek(where.offset)
            raw = file.read(where.length)
        piece: Tensor = torch.load(io.BytesIO(raw), weights_only=True, map_location="cpu")
        return piece


def _stored_name(name: str) -> tuple[str, int | None]:
    parts = name.split(".")
    if parts[:2] != ["decoder", "layers"]:
        return name, None
    return ".".join(parts[:2] + parts[3:]), int(parts[2])
