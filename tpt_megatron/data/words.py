"""Hashes of the words of texts and of their n-grams, by numpy on whole batches: 13 ms of CPU per MB.

A word is a run of letters and digits, ASCII case folded; a Chinese, Japanese or Korean character is one too.
Splitting by a regular expression and joining n-grams takes 140 ms per MB.
"""

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

LONGEST_WORD_BYTES = 32  # a word's further bytes do not count
BASE = 0x9E3779B97F4A7C15


@functools.lru_cache
def _kinds() -> bytes:
    """Of each byte: 0 between words, 1 in a word, 2 opens a word of its own (first of U+3000 to U+DFFF)."""
    table = (1 if byte >= 128 else int(chr(byte).isalnum()) for byte in range(256))
    return bytes(2 if 0xE3 <= byte <= 0xED else kind for byte, kind in enumerate(table))


def word_hashes(texts: Sequence[str]) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """Hashes [words] of all words of `texts` in a row, and where each text's begin and end, [texts + 1]."""
    # A lone surrogate must not stop a batch; a corpus's reader sets such rows aside.
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    raw = b"".join([b" ", b" ".join(parts), b" " * LONGEST_WORD_BYTES]).lower()
    kinds = np.frombuffer(raw.translate(_kinds()), np.uint8)
    inside, opens = kinds != 0, kinds == 2
    starts = np.flatnonzero(inside[1:] & (opens[1:] | ~inside[:-1])) + 1
    ends = np.flatnonzero(inside[:-1] & (opens[1:] | ~inside[1:])) + 1
    lengths = np.minimum(ends - starts, LONGEST_WORD_BYTES)
    # Eight bytes at every place; the blanks at the end keep the last view inside.
    eights = np.ndarray((len(raw) - 7,), np.uint64, raw, 0, (1,))
    masks = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)
    hashes = _mix(eights[starts] & masks[np.minimum(lengths, 8)])
    longer, done = np.flatnonzero(lengths > 8), 8
    while len(longer):
        rest = eights[starts[longer] + done] & masks[np.minimum(lengths[longer] - done, 8)]
        hashes[longer] = _mix(hashes[longer] + rest)
        done += 8
        longer = longer[lengths[longer] > done]
    text_starts = np.cumsum([1, *(len(part) + 1 for part in parts)])
    return hashes, np.searchsorted(starts, text_starts).astype(np.int64)


def ngram_hashes(words: Hashes, length: int) -> Hashes:
    """Hashes of the n-grams of `length` words in a row, [max(0, words - length + 1)]; order counts."""
    if len(words) < length:
        return np.empty(0, np.uint64)
    # By doubling: 13-grams from those of 1, 4 and 8 words, with 5 passes instead of 12.
    part, part_words = words, 1
    grams: Hashes | None = None
    taken = 0
    while length - taken:
        if length & part_words:
            tail = part[taken:]
            grams = tail if grams is None else grams[: len(tail)] * _power(part_words) + tail
            taken += part_words
        if length - taken:
            part = part[:-part_words] * _power(part_words) + part[part_words:]
            part_words *= 2
    assert grams is not None
    return _mix(grams[: len(words) - length + 1])


def _power(exponent: int) -> np.uint64:
    return np.uint64(pow(BASE, exponent, 2**64))


def _mix(words: Hashes) -> Hashes:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014); one that maps 0 to something else."""
    words = words + np.uint64(BASE)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
