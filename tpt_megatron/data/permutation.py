"""A shuffle that needs no table: a Feistel network with cycle walking.

The order of N windows is computed as it is asked for, in constant memory, whatever N is.
"""

import hashlib
import struct

import numpy as np
import numpy.typing as npt

ROUNDS = 6
WORD = 2**64 - 1

Words = npt.NDArray[np.uint64]


class Permutation:
    """A bijection of range(size), drawn by `key`; equal keys give equal orders on every machine."""

    def __init__(self, size: int, *key: int) -> None:
        assert size > 0
        self.size = size
        self._half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self._mask = (1 << self._half_bits) - 1
        seed = hashlib.blake2b(repr(key).encode(), digest_size=8 * ROUNDS).digest()
        self._round_keys = struct.unpack(f"<{ROUNDS}Q", seed)

    def __getitem__(self, index: int) -> int:
        """Where `index` goes; the domain is at most 4 * size, so four walks are expected at worst."""
        assert 0 <= index < self.size
        value = self._encrypt(index)
        while value >= self.size:
            value = self._encrypt(value)
        return value

    def _encrypt(self, value: int) -> int:
        left, right = value >> self._half_bits, value & self._mask
        for key in self._round_keys:
            left, right = right, left ^ (_mix(right + key) & self._mask)
        return left << self._half_bits | right

    def many(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where each of `indices` [n] goes, [n]; a Python operation a round, not one an index."""
        assert not indices.size or (indices.min() >= 0 and indices.max() < self.size)
        values = self._encrypt_many(indices.astype(np.uint64))
        outside = np.flatnonzero(values >= self.size)
        while outside.size:
            values[outside] = self._encrypt_many(values[outside])
            outside = outside[values[outside] >= self.size]
        return values.astype(np.int64)

    def _encrypt_many(self, values: Words) -> Words:
        half_bits, mask = np.uint64(self._half_bits), np.uint64(self._mask)
        left, right = values >> half_bits, values & mask
        for key in self._round_keys:
            left, right = right, left ^ (_mix_many(right + np.uint64(key)) & mask)
        result: Words = left << half_bits | right
        return result


def _mix(value: int) -> int:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit."""
    value &= WORD
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & WORD
    return value ^ (value >> 31)


def _mix_many(values: Words) -> Words:
    """`_mix` of each of `values`; arrays of uint64 wrap as it does."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
