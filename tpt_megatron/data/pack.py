"""`tpt pack`: trajectories, raw documents or conversations become an indexed dataset.

Blocks of the input become pieces (packer.py), on any number of processes or machines; pieces become the
dataset (assemble.py). The same command again goes on where it stopped, and does nothing where all is done.
"""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from tpt_megatron.artifact import MANIFEST_SUFFIX, check_sizes, read_manifest
from tpt_megatron.config.schema import CorpusConfig, DataConfig
from tpt_megatron.data.assemble import Assembly, Tally, sole_packer
from tpt_megatron.data.blocks import Block, Plan, plan_blocks, read_block
from tpt_megatron.data.chat import build_chat
from tpt_megatron.data.compose import build_recipe
from tpt_megatron.data.executor import run_tasks
from tpt_megatron.data.filters import open_filters
from tpt_megatron.data.identity import check_identity, describe, shard_of
from tpt_megatron.data.layout import dataset_file, token_dtype
from tpt_megatron.data.near import check_near_duplicates
from tpt_megatron.data.packer import PackJob, work_folder
from tpt_megatron.data.piece import Piece, read_pieces
from tpt_megatron.data.rows import RowBatch
from tpt_megatron.data.tokenize import choose_encoder
from tpt_megatron.errors import ConfigError, DamagedError, InputError
from tpt_megatron.tokenizer import TokenizerFacts, load_facts

SAMPLE_CHARACTERS = 2**17  # of all blocks looked at: about 0.1 s of the reference tokenizer


@dataclass(frozen=True)
class PackSummary:
    """What `pack` did. tokens = document_tokens + thinking_tokens."""

    rows: int  # of the input: sequences + quarantined + left_out
    sequences: int
    tokens: int
    document_tokens: int  # the text with begin and end of document
    thinking_tokens: int  # all that TPT adds: tags, line breaks and thoughts
    quarantined: int
    left_out: Mapping[str, int]  # by reason: duplicates, filters, ...
    seconds: float
    megabytes: float  # of UTF-8 text and thoughts that were tokenized (10^6 bytes)
    prefix: str
    encoder: str  # "" where nothing had to be encoded
    warning: str | None
    shard: str = ""  # set: only these blocks' pieces were made, and there is no dataset yet


def pack(data: DataConfig, corpus: CorpusConfig, report: Callable[[int], None]) -> PackSummary:
    """Compose, tokenize and index `data.inputs` (or `corpus`, styles "none" and "chat") as `data.output`.

    `report` gets the number of rows done since its last call. Rows that are no documents go to
    OUTPUT.quarantine.jsonl. Raises ConfigError naming the key; InputError where no document is left, where
    the inputs or the settings are not those of the work that was begun, and where the disk fails.
    """
    started = time.monotonic()
    prefix = _prefix(data)
    try:
        return _pack(data, corpus, prefix, report, started)
    except OSError as error:
        raise InputError(
            f"{error.filename or prefix}: {error.strerror or error}",
            fix="mend it and run the same command again; what is finished is kept",
        ) from error


def check(data: DataConfig, corpus: CorpusConfig) -> Plan:
    """The blocks of the inputs, after the settings that need no tokenizer; what a dry run says."""
    prefix = _prefix(data)
    shard_of(data.shard)
    if not data.tokenizer:
        raise ConfigError("data.tokenizer is empty", expected="a folder with tokenizer.json, or a hub name")
    open_filters(data.filter)
    if data.filter.near_duplicates:
        check_near_duplicates()
    return plan_blocks(data.inputs, corpus, data.style, exclude=prefix)


def _pack(
    data: DataConfig, corpus: CorpusConfig, prefix: Path, report: Callable[[int], None], started: float
) -> PackSummary:
    plan = check(data, corpus)
    tokenizer = load_facts(data.tokenizer)
    about, template = _about_recipe(data, tokenizer)
    identity = describe(data, corpus, tokenizer, plan, template)
    if (done := _finished(prefix, identity)) is not None:
        return _summary(done, prefix, started, "", None)
    folder = work_folder(prefix)
    check_identity(folder, identity)
    shard, shards = shard_of(data.shard)
    mine = [block for block in plan.blocks if block.index % shards == shard]
    encoder, warning = choose_encoder(tokenizer, data.encoder, _sample(plan.blocks, data, corpus))
    job = PackJob(data, corpus, tokenizer, encoder, folder)
    if data.shard:
        for rows in run_tasks(job.worker, mine, data.workers, data.executor):
            report(rows)
        return _shard_summary(mine, folder, prefix, started, encoder, warning, data.shard)
    with sole_packer(folder):
        for rows in run_tasks(job.worker, mine, data.workers, data.executor):
            report(rows)
        tally = _assemble(plan.blocks, folder, prefix, data, tokenizer, {**about, "identity": identity})
        shutil.rmtree(folder)
    if data.raw_tokens is not None and not tally.left_out["not_sampled"]:
        few = f"data.raw_tokens={data.raw_tokens}, and there are {tally.total('document_tokens')} in all"
        warning = f"{warning}; {few}" if warning else few
    return _summary(tally, prefix, started, encoder, warning)


def _prefix(data: DataConfig) -> Path:
    if not data.output or data.output.endswith("/") or Path(data.output).is_dir():
        raise ConfigError(
            "data.output must be a prefix, not a folder",
            got=repr(data.output), expected="FOLDER/NAME, which becomes NAME.bin, NAME.idx, ...",
        )  # fmt: skip
    return Path(data.output)


def _about_recipe(data: DataConfig, tokenizer: TokenizerFacts) -> tuple[dict[str, Any], str]:
    """The part of the manifest's facts that is known before the first row, and the text of the chat template.

    Refuses what cannot be.
    """
    cuts = data.max_thinking_tokens is not None or data.long_documents == "truncate_thought"
    if data.style == "none" and cuts:
        raise ConfigError("data.style=none has no thoughts to cut", fix="unset what cuts them")
    if data.style != "chat" and data.chat_template != "auto":
        raise ConfigError("data.chat_template is for data.style=chat", got=f"data.style={data.style}")
    chat = build_chat(tokenizer, data) if data.style == "chat" else None
    about = {
        "tokenizer": {
            "name": tokenizer.name,
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
        },
        "style": data.style,
        "control": chat.control if chat else build_recipe(data, tokenizer).control,
    }
    return about, chat.template.text if chat else ""


def _sample(blocks: Sequence[Block], data: DataConfig, corpus: CorpusConfig) -> list[str]:
    """Texts from the first, the middle and the last block, on which encoders are compared."""
    texts: list[str] = []
    places = {0, len(blocks) // 2, len(blocks) - 1} if blocks else set()
    share = SAMPLE_CHARACTERS // max(len(places), 1)
    for block in (blocks[place] for place in sorted(places)):
        batches = read_block(block, corpus, data.style, metadata=False, skip_rows=0, batch_characters=share)
        batch = next(iter(batches), None)
        if batch is not None:
            texts += _first(chain(batch.texts, batch.thoughts or (), _said(batch)), share)
    return texts


def _said(batch: RowBatch) -> Iterator[str]:
    return (str(turn["content"]) for messages in batch.messages or () for turn in messages)


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
    """Of `texts` so much, the last one cut."""
    for text in texts:
        if characters <= 0:
            return
        yield text[:characters]
        characters -= len(text)


def _finished(prefix: Path, identity: Mapping[str, Any]) -> Tally | None:
    """The tally of the dataset that is there, if it is the one that this command would make."""
    path = dataset_file(prefix, MANIFEST_SUFFIX)
    if not path.exists():
        return None
    manifest = read_manifest(path, kind="dataset")
    if manifest.about.get("identity") != identity:
        return None
    try:
        check_sizes(path, manifest)
    except DamagedError as error:
        raise DamagedError(str(error), fix=f"remove {path} and run the same command to pack again") from error
    shutil.rmtree(work_folder(prefix), ignore_errors=True)  # an earlier run was stopped before it could
    return Tally.from_counts(manifest.about["counts"])


def _assemble(
    blocks: Sequence[Block],
    folder: Path,
    prefix: Path,
    data: DataConfig,
    tokenizer: TokenizerFacts,
    about: Mapping[str, Any],
) -> Tally:
    pieces: list[Piece] = []
    for block in blocks:
        found = read_pieces(folder, block.index)
        if not found or not found[-1].last:
            raise InputError(
                f"{folder}: block {block.index} has no whole set of pieces",
                fix="data.output has to be on storage that all nodes share; run the same command again",
            )
        pieces += found
    assembly = Assembly(pieces, folder, data, token_dtype(tokenizer.vocab_size))
    assembly.lay_out()
    tally = assembly.tally
    if not tally.by_source:
        first = (
            next((piece.bad_rows() for piece in pieces if piece.quarantined), b"").split(b"\n")[0].decode()
        )
        left_out = ", ".join(f"{count} {reason}" for reason, count in (+tally.left_out).items())
        shutil.rmtree(folder)
        raise InputError(
            f"no document to pack, {tally.quarantined} bad rows"
            + (f", left out: {left_out}" if left_out else "")
            + (f"; the first bad row: {first}" if first else "")
        )
    assembly.publish(prefix, {**about, "sources": list(tally.by_source), "counts": tally.counts()})
    return tally


def _summary(tally: Tally, prefix: Path, started: float, encoder: str, warning: str | None) -> PackSummary:
    return PackSummary(
        rows=tally.rows,
        sequences=tally.total("sequences"),
        tokens=tally.total("tokens"),
        document_tokens=tally.total("document_tokens"),
        thinking_tokens=tally.total("thinking_tokens"),
        quarantined=tally.quarantined,
        left_out=dict(+tally.left_out),
        seconds=time.monotonic() - started,
        megabytes=tally.text_bytes / 1e6,
        prefix=str(prefix),
        encoder=encoder,
        warning=warning,
    )


def _shard_summary(
    blocks: Sequence[Block],
    folder: Path,
    prefix: Path,
    started: float,
    encoder: str,
    warning: str | None,
    shard: str,
) -> PackSummary:
    pieces = [piece for block in blocks for piece in read_pieces(folder, block.index)]
    tokens = sum(piece.token_bytes // piece.dtype.itemsize for piece in pieces)
    thinking = sum(
        int((p.column("thinking_end") - p.column("thinking_start")).sum()) for p in pieces if p.sequences
    )
    return PackSummary(
        rows=sum(piece.rows for piece in pieces),
        sequences=sum(piece.sequences for piece in pieces),
        tokens=tokens,
        document_tokens=tokens - thinking,
        thinking_tokens=thinking,
        quarantined=sum(piece.quarantined for piece in pieces),
        left_out={},
        seconds=time.monotonic() - started,
        megabytes=sum(piece.text_bytes for piece in pieces) / 1e6,
        prefix=str(prefix),
        encoder=encoder,
        warning=warning,
        shard=shard,
    )
