"""A piece gives back what was put in, range by range, and refuses every changed byte."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tpt_megatron.data.piece import CHUNK_BYTES, LINEAGE_SCHEMA, Piece, new_piece, piece_path, read_pieces
from tpt_megatron.errors import DamagedError
from tpt_megatron.records import BadRow

TOKENS = np.random.default_rng(0).integers(0, 60000, CHUNK_BYTES * 5 // 4).astype("<u2")  # 2.5 chunks


def lineage(count: int) -> pa.RecordBatch:
    columns: list[list[Any]] = [
        [f"id{i}" for i in range(count)], [0] * count, ["web"] * count, [1] * count, [2] * count,
        ["stop"] * count, [""] * count,
    ]  # fmt: skip
    arrays = [pa.array(c, f.type) for c, f in zip(columns, LINEAGE_SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=LINEAGE_SCHEMA)


def write(path: Path, last: bool = True, batches: int = 3) -> Piece:
    with new_piece(path, np.dtype("<u2"), "in") as piece:
        for part in np.array_split(TOKENS, batches):
            piece.add_tokens(part)
            piece.add_columns({"lengths": np.array([len(part)], "<i4")}, lineage(1))
        piece.add_bad([BadRow("f", 3, "why", 17)])
        piece.rows, piece.text_bytes = batches + 1, 99
        piece.counts["where"] += 2
        piece.finish(last)
    return Piece(path)


def read(piece: Piece, runs: list[list[int]]) -> bytes:
    return b"".join(bytes(view) for view in piece.tokens(np.array(runs)))


@pytest.mark.parametrize("batches", [1, 3, 1000])
def test_what_goes_in_comes_out(tmp_path: Path, batches: int) -> None:
    piece = write(tmp_path / "p", batches=batches)
    raw = TOKENS.tobytes()
    assert piece.column("lengths").tolist() == [len(part) for part in np.array_split(TOKENS, batches)]
    assert (piece.sequences, piece.rows, piece.quarantined, piece.text_bytes) == (batches, batches + 1, 1, 99)
    assert piece.counts == {"where": 2}
    assert piece.bad_rows() == b'{"file":"f","line":3,"reason":"why","offset":17}\n'
    assert len(piece.lineage()) == batches
    edges = [0, 2, CHUNK_BYTES - 2, CHUNK_BYTES, CHUNK_BYTES + 2, 2 * CHUNK_BYTES, len(raw)]
    for start in edges:
        for stop in edges:
            if start < stop:
                assert read(piece, [[start, stop]]) == raw[start:stop]
    scattered = [[0, 10], [20, CHUNK_BYTES + 4], [CHUNK_BYTES + 6, CHUNK_BYTES + 8], [len(raw) - 2, len(raw)]]
    assert read(piece, scattered) == b"".join(raw[start:stop] for start, stop in scattered)


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    write(tmp_path / "p")
    raw = bytearray((tmp_path / "p").read_bytes())
    rng = np.random.default_rng(1)
    places = [*rng.integers(0, len(raw), 40), *range(len(raw) - 40, len(raw)), 0, TOKENS.nbytes]
    for place in places:
        raw[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "q").write_bytes(raw)
        with pytest.raises(DamagedError, match=r"q: .*run the same `tpt pack` again"):
            everything(Piece(tmp_path / "q"))
        raw[:] = (tmp_path / "p").read_bytes()


def everything(piece: Piece) -> None:
    read(piece, [[0, piece.token_bytes]])
    piece.column("lengths")
    piece.lineage()
    piece.bad_rows()


@pytest.mark.parametrize("kept", [0, 1, 23, 24, 1000, -1])
def test_a_cut_piece_is_no_piece(tmp_path: Path, kept: int) -> None:
    write(tmp_path / "p")
    raw = (tmp_path / "p").read_bytes()
    (tmp_path / "p").write_bytes(raw[:kept])
    with pytest.raises(DamagedError):
        Piece(tmp_path / "p")


def test_pieces_of_a_block_end_at_a_gap_or_at_the_last(tmp_path: Path) -> None:
    assert read_pieces(tmp_path, 7) == []
    write(piece_path(tmp_path, 7, 0), last=False)
    write(piece_path(tmp_path, 7, 2), last=False)
    assert [piece.last for piece in read_pieces(tmp_path, 7)] == [False]
    write(piece_path(tmp_path, 7, 1), last=True)
    assert [piece.last for piece in read_pieces(tmp_path, 7)] == [False, True]


def test_a_piece_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with new_piece(tmp_path / "p", np.dtype("<u2"), "in") as piece:
            piece.add_tokens(TOKENS)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []
