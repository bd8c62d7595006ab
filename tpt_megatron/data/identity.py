"""What a begun packing is of: its settings and inputs. Another one in the same folder is refused by name."""

import json
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tpt_megatron.artifact import TEMPORARY, write_text
from tpt_megatron.config.schema import CorpusConfig, DataConfig
from tpt_megatron.data.blocks import Plan
from tpt_megatron.errors import ConfigError, DamagedError, InputError
from tpt_megatron.records import stable_hash
from tpt_megatron.tokenizer import TokenizerFacts

VERSION = 1  # of pieces: a change in what they hold refuses work that an older version began
# Keys of `data` that change nothing in the files: where they are, who makes them, and what training reads.
IRRELEVANT = {
    "output", "inputs", "tokenizer", "encoder", "workers", "executor", "shard", "blend", "weight_unit",
    "document_mask", "cache_dir", "prefetch_batches",
}  # fmt: skip


def describe(
    data: DataConfig, corpus: CorpusConfig, tokenizer: TokenizerFacts, plan: Plan, template: str
) -> dict[str, Any]:
    """Settings by key, and a hash over the inputs' names, sizes and versions; `template` is the chat's."""
    settings = data.model_dump(mode="json", exclude=IRRELEVANT)
    if data.packing == "concat" and data.long_documents == "split":
        del settings["sequence_length"]  # changes no file, only the note of how many are longer
    # What a reader of one's own reads, nobody else knows: its paths stand for it.
    files: list[Any] = [asdict(file) for file in plan.files] or list(corpus.paths)
    return {
        "version": VERSION,
        "tokenizer": tokenizer.fingerprint,
        "inputs": {"files": len(files), "blocks": len(plan.blocks), "hash": stable_hash(files)},
        "data": settings,
        "template": stable_hash(template),
        "corpus": corpus.model_dump(mode="json", exclude={"paths"}),
    }


def check_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Write `identity` into `folder`, or compare it with the one that is there."""
    path = folder / "identity.json"
    if not path.exists():
        own = folder / f"{TEMPORARY}{uuid.uuid4().hex}-identity.json"
        write_text(own, json.dumps(identity, indent=1, sort_keys=True))
        with suppress(FileExistsError):  # of shards that begin at once the first decides
            os.link(own, path)
        own.unlink()
    try:
        begun = json.loads(path.read_bytes())
    except ValueError as error:
        fix = f"remove {folder} and run the command again"
        raise DamagedError(f"{path}: not readable ({error})", fix=fix) from error
    if changed := sorted(_changes("", begun, json.loads(json.dumps(identity)))):
        raise InputError(
            f"{folder}: packing was begun with other settings or inputs: {'; '.join(changed)}",
            fix=f"change them back, choose another data.output, or remove {folder}",
        )


def _changes(key: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            change
            for name in sorted(old.keys() | new.keys())
            for change in _changes(f"{key}.{name}" if key else name, old.get(name), new.get(name))
        ]
    return [] if old == new else [f"{key} was {old!r} and is {new!r}"]


def shard_of(shard: str) -> tuple[int, int]:
    """(index, count) of `data.shard`, "0/1" where it is empty."""
    index, slash, count = (shard or "0/1").partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ConfigError(
            "data.shard", got=repr(shard), expected="INDEX/COUNT with INDEX from 0 to COUNT - 1, as in 0/8"
        )
    return int(index), int(count)
