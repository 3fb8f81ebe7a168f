"""Levels: the logarithm of a magnitude in integers, the coder's view of how large a weight is.

The level of a fixed-point magnitude n is about 256 * log2(n): its octave from the leading zeros,
the rest from a table over the eight bits that follow the leading one. No floating point is
involved, so every decoder agrees (SPEC.md, "Levels").
"""

from __future__ import annotations

import numpy as np

from pabzip.seeds.compiled import compiled
from pabzip.seeds.gather import leading_zeros

STEPS = 256
"""Levels an octave."""


def _fractions() -> np.ndarray:
    """Return floor(256 * log2(1 + j / 256)) for j = 0..255, by exact integer arithmetic."""
    # floor(256 log2(x)) = floor(log2(x ** 256)), and an integer's bit length is floor(log2) + 1.
    exact = [((STEPS + j) ** STEPS).bit_length() - 1 - 8 * STEPS for j in range(STEPS)]
    return np.array(exact, dtype=np.int16)


FRACTIONS = _fractions()


@compiled
def level(magnitude: np.uint32) -> np.int32:
    """Return the level of one magnitude, a uint32 of at least 1."""
    zeros = leading_zeros(magnitude)
    aligned = np.uint32(magnitude << zeros)
    return np.int32(
        (31 - np.int32(zeros)) * 256 + FRACTIONS[(aligned >> np.uint32(23)) & np.uint32(255)]
    )
