"""Half-precision storage of dense tensors: rounded to nearest even, exactly, on any machine.

bfloat16 is the upper half of a float32, so its rounding is integer arithmetic on bit patterns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pabzip.formats.registry import DENSE_TYPES


def to_stored(values: NDArray[Any], dtype: str, stored: str) -> NDArray[Any]:
    """Round values of ``dtype`` to nearest even in ``stored``; overflow becomes infinity."""
    if dtype == stored:
        return values
    if stored == "float16":
        with np.errstate(over="ignore", under="ignore"):
            return values.astype(DENSE_TYPES["float16"].numpy)
    single = values if dtype == "float32" else _round_to_odd(values)
    return _bfloat16_bits(single)


def from_stored(values: NDArray[Any], dtype: str, stored: str) -> NDArray[Any]:
    """Widen values of ``stored`` to ``dtype``, exactly."""
    if dtype == stored:
        return values
    exact = bfloat16_to_float32(values) if stored == "bfloat16" else values
    return exact.astype(DENSE_TYPES[dtype].numpy)


def bfloat16_to_float32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the float32 values of bfloat16 bit patterns, exactly."""
    wide = np.asarray(bits).astype("<u4") << np.uint32(16)
    return np.asarray(wide, dtype="<u4").view("<f4")


def finite(values: NDArray[Any], dtype: str) -> NDArray[np.bool_]:
    """Return which values of a floating ``dtype`` are finite; bfloat16 as bit patterns."""
    if dtype == "bfloat16":
        return np.asarray((values & np.uint16(0x7F80)) != np.uint16(0x7F80))
    return np.asarray(np.isfinite(values))


def _bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round finite float32 values to the nearest bfloat16, ties to the even bit pattern."""
    bits = np.asarray(values, dtype="<f4").view("<u4")
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.asarray((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype("<u2")


def _round_to_odd(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Cut float64 to float32 with the last bit set where anything was lost.

    A second rounding to nearest then never sees a false tie, which rounding to nearest twice can.
    """
    with np.errstate(over="ignore", under="ignore"):
        nearest = np.asarray(values, dtype="<f8").astype("<f4")
    bits = nearest.view("<u4")
    away = np.abs(nearest).astype("<f8") > np.abs(values)
    inexact = nearest.astype("<f8") != values
    return np.asarray((bits - away.astype("<u4")) | inexact.astype("<u4")).view("<f4")
