"""Near duplicates: MinHash signatures by rensa, bands of them through the partitions, clusters by union.

rensa, not datasketch: 5 ms of CPU per MB against 170, with the same error (standard deviation 0.034 at
Jaccard 0.8, theory 0.035). With the words' hashes a signature costs 20 ms per MB of text, 5 times tokenizing;
finding pairs takes 8 us a row, and 330 MB with 500,000 rows as with 2 million.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from tpt_megatron.config.schema import FilterConfig
from tpt_megatron.data.partitions import Ordinals, Spill, find_duplicates
from tpt_megatron.data.words import ngram_hashes, word_hashes
from tpt_megatron.errors import ConfigError

Signatures = npt.NDArray[np.uint32]
Words = npt.NDArray[np.uint64]

PERMUTATIONS = 128  # the similarity's estimate has a standard deviation of 0.035 at 0.8
SHINGLE_WORDS = 5
SEED = 1
RECALL = 0.95  # of pairs at exactly the threshold that share a band; above it more: 0.999 at 0.85 for 0.8
BAND_PARTITIONS = 1024  # about 20 keys a row: 50M rows until a partition is more than a block
PAIR_PARTITIONS = 256
BYTES_AT_ONCE = 2**20  # of the bits that say which rows share a band
PAIRS_AT_ONCE = 2**14  # 16 MiB of signatures gathered from the disk


def check_near_duplicates() -> None:
    """Raises ConfigError where the library is missing; before the work starts."""
    try:
        import rensa  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            "data.filter.near_duplicates needs rensa, which is not installed",
            fix="pip install 'tpt-megatron[dedup]'",
        ) from error


def signatures(texts: Sequence[str]) -> Signatures:
    """MinHash signatures [texts, PERMUTATIONS] of the sets of word 5-grams.

    A text of fewer than 5 words has the hash of its bytes as its one member, so only its equals are near.
    """
    import rensa

    if not texts:
        return np.empty((0, PERMUTATIONS), np.uint32)
    words, bounds = word_hashes(texts)
    sizes = np.diff(bounds)
    counts = np.maximum(sizes - SHINGLE_WORDS + 1, 1)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    # Where each member stands among the n-grams of all texts in a row; those across two texts are left out.
    places = np.arange(offsets[-1]) + np.repeat(bounds[:-1] - offsets[:-1], counts)
    grams = ngram_hashes(words, SHINGLE_WORDS)
    members = grams[np.minimum(places, len(grams) - 1)] if len(grams) else np.empty(len(places), np.uint64)
    for text in np.flatnonzero(sizes < SHINGLE_WORDS).tolist():
        raw = texts[text].encode("utf-8", "surrogatepass")
        members[offsets[text]] = xxhash.xxh3_64_intdigest(raw)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        members, offsets.astype(np.uint64), PERMUTATIONS, SEED
    )
    return np.array(matrix.to_rows(), np.uint32)


def banding(similarity: float) -> tuple[int, int]:
    """How a signature is cut: (bands, rows of a band).

    The longest bands, so the fewest false candidates, with which a pair at `similarity` s is found with
    probability 1 - (1 - s^rows)^bands >= RECALL (Leskovec, Rajaraman, Ullman, section 3.4).
    """
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - similarity**rows) ** bands >= RECALL:
            return bands, rows
    return PERMUTATIONS, 1


def find_near_duplicates(
    folder: Path, chunks: Callable[[], Iterable[Signatures]], config: FilterConfig
) -> Iterator[tuple[Ordinals, Ordinals]]:
    """Every row of a cluster of near duplicates but its earliest: pairs (later [k], earliest [k]).

    `chunks()` gives the signatures of all rows in their order, the same at each of two calls. Two rows are
    near where their signatures agree in `near_similarity` of the places; clusters are what such pairs
    connect. `folder` gets temporary files: up to 450 bytes a row, and 512 for each row that shares a band
    with another. Memory: a bit a row, and 50 bytes for each such row.
    """
    with Spill(folder / "pairs", PAIR_PARTITIONS, 2) as spill:
        candidates = _spill_pairs(folder, chunks, config, spill)
        path = folder / "signatures.spill"
        try:
            _write_signatures(path, chunks(), candidates)
            blocks = (block for partition in range(PAIR_PARTITIONS) for block in spill.blocks(partition))
            edges = [_near_pairs(path, block, candidates, config) for block in blocks]
        finally:
            path.unlink(missing_ok=True)
    if edges:
        earliest = _components(len(candidates), np.concatenate(edges))
        later = np.flatnonzero(earliest != np.arange(len(candidates)))
        if len(later):
            yield candidates[later], candidates[earliest[later]]


def _band_keys(signed: Signatures, similarity: float) -> Words:
    """Keys [n * bands, 2] of the bands of n signatures; the band's number is part of its key."""
    bands, rows = banding(similarity)
    cut = np.ascontiguousarray(signed[:, : bands * rows].reshape(len(signed), bands, rows))
    keys = np.empty((len(signed), bands, 2), np.uint64)
    for word, multiplier in enumerate((0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93)):
        mixed = np.broadcast_to(np.arange(1, bands + 1, dtype=np.uint64), cut.shape[:2])
        for place in range(rows):
            mixed = (mixed ^ cut[:, :, place]) * np.uint64(multiplier)
            mixed = mixed ^ (mixed >> np.uint64(32))
        keys[:, :, word] = mixed * np.uint64(multiplier)
    return keys.reshape(-1, 2)


def _spill_pairs(
    folder: Path, chunks: Callable[[], Iterable[Signatures]], config: FilterConfig, spill: Spill
) -> Ordinals:
    """Put the pairs of rows that share a band into `spill`, by the later row; the rows in any, ascending."""
    bands, _ = banding(config.near_similarity)
    rows = 0

    def keys() -> Iterator[Words]:
        nonlocal rows
        for chunk in chunks():
            rows += len(chunk)
            yield _band_keys(chunk, config.near_similarity)

    seen = np.empty(0, np.uint8)  # a bit a row
    for later, first in find_duplicates(folder, keys(), BAND_PARTITIONS):
        if not len(seen):  # the first pairs come after the last key: now all rows are counted
            seen = np.zeros(rows // 8 + 1, np.uint8)
        pairs = np.stack([later, first], axis=1) // bands
        spill.add(pairs.astype(np.uint64), (pairs[:, 0] * spill.partitions // rows).astype(np.uint16))
        np.bitwise_or.at(seen, pairs >> 3, np.left_shift(1, pairs & 7).astype(np.uint8))
    spill.finish()
    slices = (seen[begin : begin + BYTES_AT_ONCE] for begin in range(0, len(seen), BYTES_AT_ONCE))
    found = [np.flatnonzero(np.unpackbits(piece, bitorder="little")) for piece in slices]
    starts = [8 * BYTES_AT_ONCE * number + places for number, places in enumerate(found)]
    return np.concatenate([np.empty(0, np.int64), *starts])


def _write_signatures(path: Path, chunks: Iterable[Signatures], candidates: Ordinals) -> None:
    """The signatures of the candidates alone, in their order: on disk, to be read at any place."""
    begin = 0
    with path.open("wb") as file:
        for chunk in chunks:
            first, last = np.searchsorted(candidates, [begin, begin + len(chunk)])
            file.write(np.ascontiguousarray(chunk[candidates[first:last] - begin]).data)
            begin += len(chunk)


def _near_pairs(path: Path, pairs: Words, candidates: Ordinals, config: FilterConfig) -> Ordinals:
    """Of pairs of rows [n, 2] the near ones, once each, as places among the candidates [m, 2]."""
    places = np.searchsorted(candidates, pairs.astype(np.int64))
    codes = np.unique(places[:, 0] * len(candidates) + places[:, 1])
    wanted = config.near_similarity * PERMUTATIONS
    near = []
    for begin in range(0, len(codes), PAIRS_AT_ONCE):
        later, first = np.divmod(codes[begin : begin + PAIRS_AT_ONCE], len(candidates))
        # Mapped anew each time, so that pages that were read do not pile up as this process's memory.
        signed = np.memmap(path, np.uint32, "r", shape=(len(candidates), PERMUTATIONS))
        agreeing = (signed[later] == signed[first]).sum(axis=1)
        near.append(np.stack([later, first], axis=1)[agreeing >= wanted])
    return np.concatenate(near)


def _components(count: int, edges: Ordinals) -> Ordinals:
    """The smallest member [count] of each place's connected component; `edges` are [n, 2]."""
    root = np.arange(count)
    while len(edges):
        ends = root[edges]
        edges = edges[ends[:, 0] != ends[:, 1]]
        ends = np.sort(root[edges], axis=1)
        np.minimum.at(root, ends[:, 1], ends[:, 0])  # roots hang themselves under smaller ones: no cycle
        while not np.array_equal(higher := root[root], root):
            root = higher
    return root
