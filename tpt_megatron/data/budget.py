"""A budget of raw tokens by random sampling: documents below a threshold of a seeded hash are kept.

The sample is a function of (seed, documents) alone, whatever their order, shards and workers; a larger
budget holds the sample of a smaller one. 20M rows take 1 CPU-s and no memory to speak of.
"""

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

BUCKET_BITS = 16
BUCKETS = 2**BUCKET_BITS
EVERYTHING = 2**64 - 1  # a threshold above every key, itself a uint64


def sample_keys(hashes: Words, seed: int) -> Words:
    """Keys [n], uniform below EVERYTHING, of documents' 128-bit hashes [n, 2]; equal ones get equal keys."""
    start = _mix(np.array([seed % 2**64], np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return np.minimum(_mix(_mix(hashes[:, 0] + start) ^ hashes[:, 1]), np.uint64(EVERYTHING - 1))


def keep_threshold(chunks: Callable[[], Iterable[tuple[Words, npt.NDArray[np.int64]]]], budget: int) -> int:
    """The largest t for which the rows with `key < t` hold at most `budget` tokens; EVERYTHING where all do.

    `chunks()` gives keys [n] and tokens [n], the same at each of two calls; rows that are dropped for other
    reasons are not in it. The next document would exceed the budget. Compare with `keys < t`, not `<=`.
    """
    counts = np.zeros(BUCKETS, np.int64)
    for keys, tokens in chunks():
        buckets = (keys >> np.uint64(64 - BUCKET_BITS)).astype(np.intp)
        # The float64 sums are exact: under 2**53 tokens.
        counts += np.bincount(buckets, tokens, BUCKETS).astype(np.int64)
    held = np.cumsum(counts)
    if held[-1] <= budget:
        return EVERYTHING
    crossing = int(np.searchsorted(held, budget, side="right"))
    before = int(held[crossing - 1]) if crossing else 0
    return _threshold_within(chunks, crossing, budget - before)


def _threshold_within(
    chunks: Callable[[], Iterable[tuple[Words, npt.NDArray[np.int64]]]], bucket: int, budget: int
) -> int:
    """The key of the first document, by key, of `bucket` that does not fit into `budget`."""
    found = []
    for keys, tokens in chunks():
        inside = keys >> np.uint64(64 - BUCKET_BITS) == bucket
        found.append((keys[inside], tokens[inside]))
    all_keys = np.concatenate([keys for keys, _ in found])
    order = np.argsort(all_keys, kind="stable")
    held = np.cumsum(np.concatenate([tokens for _, tokens in found])[order])
    # All samples of a document share its key, so the first that does not fit takes the others along.
    return int(all_keys[order][np.searchsorted(held, budget, side="right")])


def _mix(words: Words) -> Words:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014), as in permutation.py, over an array."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
