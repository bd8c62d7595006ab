"""bfloat16 in numpy, which has none: the bit patterns (uint16) and the float32 values they stand for."""

import numpy as np
from numpy.typing import NDArray

NAN_BITS = 0x7FC0


def widen(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The values of bfloat16 bit patterns, exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: NDArray[np.floating]) -> NDArray[np.uint16]:
    """The bit patterns nearest to values, ties to even; overflow becomes infinity and NaN stays NaN.

    A sum, product, quotient or root of bfloat16 values computed in float32 and narrowed is the correctly
    rounded one: 24 bits are more than 2 * 8 + 2, so the two roundings are one.
    """
    single = np.ascontiguousarray(values, dtype=np.float32)
    bits = single.view(np.uint32)
    round_up = 0x7FFF + ((bits >> 16) & 1)  # half a unit, less one where the pattern is even
    nearest = ((bits + round_up.astype(np.uint32)) >> 16).astype(np.uint16)
    return np.where(np.isnan(single), np.uint16(NAN_BITS), nearest)


def truncate(values: NDArray[np.floating]) -> NDArray[np.uint16]:
    """The bit patterns next to values on the side of zero; NaN stays NaN."""
    single = np.ascontiguousarray(values, dtype=np.float32)
    away = np.abs(single) > np.abs(values)  # a float64 that float32 rounded away from zero
    single = np.where(away, np.nextafter(single, np.float32(0)), single)
    bits = (single.view(np.uint32) >> 16).astype(np.uint16)
    return np.where(np.isnan(single), np.uint16(NAN_BITS), bits)
