"""Filters for thoughts that go in circles: repeated n-grams, a loop at the end, text that packs too well."""

from typing import TYPE_CHECKING

import numpy as np
import zstandard

from tpt_megatron.config.schema import FilterConfig
from tpt_megatron.data.words import Hashes, ngram_hashes, word_hashes

if TYPE_CHECKING:
    from tpt_megatron.data.filters import Row

# In units of ngram_words, 104 words with 13: what repeats less is a refrain, or a matrix of 10 x 10.
LOOP_LENGTH = 8
LOOP_TURNS = 3
PERIODS_TRIED = 8


def ngram_loop(row: "Row", config: FilterConfig) -> bool:
    """Drops thoughts that repeat themselves.

    Either more than `max_ngram_share` of the n-grams of `ngram_words` words came before in the thought
    (normal reasoning, restated equations included, stays below 0.1), or the thought ends in a loop: its
    last words turn at least LOOP_TURNS times. Under LOOP_LENGTH * ngram_words repeated n-grams are neither.
    """
    if not row.thinking:
        return True
    words, _ = word_hashes([row.thinking])
    grams = ngram_hashes(words, config.ngram_words)
    in_order = np.sort(grams)
    repeated = int(np.count_nonzero(in_order[1:] == in_order[:-1]))
    shortest = LOOP_LENGTH * config.ngram_words
    if repeated < shortest:
        return True
    if repeated > config.max_ngram_share * len(grams):
        return False
    return not _ends_in_a_loop(words[:-1], grams[:-1], shortest)


def _ends_in_a_loop(words: Hashes, grams: Hashes, shortest: int) -> bool:
    """Whether the last of `words` are periodic. The thought's last word, cut short by a limit, is not there.

    In a loop of period p the last n-gram came p words before, so only such distances are tried.
    """
    before = np.flatnonzero(grams[:-1] == grams[-1])
    for period in (len(grams) - 1 - before[::-1][:PERIODS_TRIED]).tolist():
        different = np.flatnonzero(words[period:] != words[:-period])
        same_words = len(words) - period - (int(different[-1]) + 1 if len(different) else 0)
        if same_words + period >= max(LOOP_TURNS * period, shortest):
            return True
    return False


def compression_ratio(row: "Row", config: FilterConfig) -> bool:
    """Drops thoughts that zstd, level 1, packs into less than `min_compression_ratio` of their bytes.

    It sees what words do not: loops of signs, and loops with a counter in them. English is at 0.3 to 0.6;
    short thoughts pack badly, so they stay.
    """
    if not row.thinking:
        return True
    raw = row.thinking.encode("utf-8", "surrogatepass")
    # A new one each time: it must not be shared by threads, and costs 25 us (0.2 of the time).
    packed = zstandard.ZstdCompressor(level=1).compress(raw)
    return len(packed) >= config.min_compression_ratio * len(raw)
