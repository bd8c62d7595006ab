"""A block becomes pieces: read, filter, encode, compose, write. A second run skips pieces that are there."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import xxhash

from tpt_megatron.config.schema import CorpusConfig, DataConfig
from tpt_megatron.data.blocks import Block, read_block
from tpt_megatron.data.chat import build_chat, compose_chat
from tpt_megatron.data.compose import ComposedBatch, build_recipe, compose_batch
from tpt_megatron.data.filters import apply_filters, open_filters
from tpt_megatron.data.layout import token_dtype
from tpt_megatron.data.near import signatures
from tpt_megatron.data.piece import LINEAGE_SCHEMA, PieceWriter, new_piece, piece_path, read_pieces
from tpt_megatron.data.rows import RowBatch
from tpt_megatron.data.tokenize import build_encoder
from tpt_megatron.data.where import at_path
from tpt_megatron.records import BadRow
from tpt_megatron.tokenizer import TokenizerFacts

PIECE_BYTES = 96 * 2**20  # of text; a block of a plain file holds fewer, a compressed file makes several
PIECE_ROWS = 2**17  # a bad row waits in memory until its piece ends, with 300 bytes
BATCH_CHARACTERS = 2**22


@dataclass(frozen=True)
class PackJob:
    """All that a worker has to know; travels by pickle."""

    data: DataConfig
    corpus: CorpusConfig
    tokenizer: TokenizerFacts
    encoder: str
    folder: Path  # of the pieces

    def worker(self) -> "BlockPacker":
        return BlockPacker(self)


class BlockPacker:
    """Takes one block at a time; opens its encoder once."""

    def __init__(self, job: PackJob) -> None:
        self._job, self._data = job, job.data
        self._dtype = token_dtype(job.tokenizer.vocab_size)
        self._encoder = build_encoder(job.tokenizer, job.encoder)
        self._filters = open_filters(job.data.filter)
        self._compose = self._composer()

    def _composer(self) -> Callable[[RowBatch], ComposedBatch]:
        encoder, tokenizer = self._encoder, self._job.tokenizer
        if self._data.style == "chat":
            chat = build_chat(tokenizer, self._data)
            return lambda batch: compose_chat(chat, batch.messages or [], encoder, tokenizer, self._dtype)
        recipe = build_recipe(self._data, tokenizer)

        def compose(batch: RowBatch) -> ComposedBatch:
            thoughts = None if batch.thoughts is None or recipe.style == "none" else batch.thoughts
            texts = encoder.encode(batch.texts)
            return compose_batch(recipe, texts, encoder.encode(thoughts) if thoughts else None, self._dtype)

        return compose

    def __call__(self, block: Block) -> int:
        """Write the pieces of `block` that are missing; the number of its rows."""
        done = read_pieces(self._job.folder, block.index)
        rows = sum(piece.rows for piece in done)
        if done and done[-1].last:
            return rows
        metadata = True if self._filters else self._data.lineage_keys
        batches = read_block(
            block, self._job.corpus, self._data.style,
            metadata=metadata, skip_rows=rows, batch_characters=BATCH_CHARACTERS,
        )  # fmt: skip
        part, last = len(done), False
        while not last:
            path = piece_path(self._job.folder, block.index, part)
            with new_piece(path, self._dtype, _file_of(block)) as piece:
                last = self._fill(piece, batches)
                piece.finish(last)
            rows, part = rows + piece.rows, part + 1
        return rows

    def _fill(self, piece: PieceWriter, batches: Iterator[RowBatch]) -> bool:
        """Whether the batches are at their end."""
        for batch in batches:
            self._add(piece, batch)
            if piece.text_bytes >= PIECE_BYTES or piece.rows >= PIECE_ROWS:
                return False
        return True

    def _add(self, piece: PieceWriter, batch: RowBatch) -> None:
        piece.rows += batch.rows
        piece.counts["where"] += batch.left_out
        piece.add_bad(batch.bad)
        if self._filters:
            batch, dropped = apply_filters(batch, self._filters, self._data.filter)
            piece.counts.update({f"filter:{name}": count for name, count in dropped.items()})
        if not len(batch):
            return
        composed = self._compose(batch)
        piece.counts.update(composed.counts)
        piece.add_bad(
            [BadRow(piece.file, 0, f"document {batch.ids[row]!r}: {reason}") for row, reason in composed.bad]
        )
        kept = batch if len(composed.kept) == len(batch) else batch.select(composed.kept.tolist())
        if not len(kept):
            return
        used = kept.thoughts if kept.thoughts is not None and self._data.style != "none" else None
        contents = _contents(kept)
        piece.text_bytes += sum(map(len, contents)) + sum(len(thought.encode()) for thought in used or ())
        piece.add_tokens(composed.ids)
        piece.add_columns(self._columns(composed, kept, contents), self._lineage(composed, kept))

    def _columns(
        self, composed: ComposedBatch, batch: RowBatch, contents: Sequence[bytes]
    ) -> dict[str, npt.NDArray[Any]]:
        columns: dict[str, npt.NDArray[Any]] = {
            "lengths": composed.lengths,
            "thinking_start": composed.thinking_start,
            "thinking_end": composed.thinking_end,
            "id_hash": _hashes([identity.encode() for identity in batch.ids]),
            "text_hash": _hashes(contents),
            "sample": np.array(self._samples(batch), np.int32),
        }
        if composed.trained is not None:
            columns["trained"] = composed.trained
        if self._data.filter.near_duplicates:
            columns["signature"] = signatures(_texts(batch))
        return columns

    def _samples(self, batch: RowBatch) -> Sequence[int]:
        """What tells equal documents apart: the thought. Without thoughts all are the same document."""
        return batch.samples if batch.samples and self._data.style != "none" else [0] * len(batch)

    def _lineage(self, composed: ComposedBatch, batch: RowBatch) -> pa.RecordBatch:
        count = len(batch)
        thinking = composed.thinking_end - composed.thinking_start
        keys = self._data.lineage_keys
        metas = [_chosen(meta, keys) for meta in batch.metas] if keys else [""] * count
        columns = [
            batch.ids, batch.samples or np.zeros(count, np.int32), batch.sources,
            composed.lengths - thinking, thinking, batch.finish_reasons or [""] * count, metas,
        ]  # fmt: skip
        arrays = [pa.array(column, field.type) for column, field in zip(columns, LINEAGE_SCHEMA, strict=True)]
        return pa.record_batch(arrays, schema=LINEAGE_SCHEMA)


def _texts(batch: RowBatch) -> list[str]:
    if batch.messages is not None:
        return ["\n".join(str(turn["content"]) for turn in messages) for messages in batch.messages]
    return batch.texts


def _contents(batch: RowBatch) -> list[bytes]:
    """What makes two documents the same: the UTF-8 text, or the messages."""
    if batch.messages is not None:
        return [orjson.dumps(messages) for messages in batch.messages]
    return [text.encode() for text in batch.texts]


def _hashes(contents: Sequence[bytes]) -> npt.NDArray[np.uint64]:
    """xxh3-128 of each, [rows, 2]."""
    digest = xxhash.xxh3_128_digest
    return np.frombuffer(b"".join([digest(content) for content in contents]), "<u8").reshape(-1, 2)


def _chosen(meta: Mapping[str, Any], keys: Sequence[str]) -> str:
    cells = ((key, at_path(meta, key)) for key in keys)
    return orjson.dumps({key: cell for key, cell in cells if cell is not None}, default=str).decode()


def _file_of(block: Block) -> str:
    """The file that a block's rows come from, or the first and the last of its small files."""
    first, last = block.spans[0].url, block.spans[-1].url
    return first if first == last else f"{first} to {last}"


def work_folder(prefix: Path) -> Path:
    """Where the pieces of the dataset `prefix` wait for each other."""
    return prefix.with_name(f"{prefix.name}.work")
