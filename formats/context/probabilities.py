"""Probabilities in integers: the static scale of the format and the adaptive rule.

A probability is that of a 1, times 65536, and never 0 or 65536: any bit can be coded.
"""

from __future__ import annotations

import numpy as np

from pabzip.seeds.compiled import compiled

ONE = 1 << 16
HALF = 1 << 15
SCALE_SIZE = 128
"""Entries of the static scale: an index takes seven bits."""


def _scale() -> np.ndarray:
    """Return the static scale: from one half, each step takes 3/32 off the smaller side."""
    below = [HALF]
    while len(below) < SCALE_SIZE // 2:
        below.append(below[-1] * 29 >> 5)
    return np.array([*reversed(below), *(ONE - small for small in below)], dtype=np.uint32)


SCALE = _scale()

ADAPTATION_LIMIT = 24
"""A context's probability is the mean of about this many last bits: layers differ, so forget."""

RECIPROCALS = np.array([ONE * 2 // (2 * n + 3) for n in range(ADAPTATION_LIMIT + 1)], np.int64)
"""Weight of the next bit in a context that has seen n, times 65536: 1 / (n + 3/2)."""

_FLOOR, _CEILING = 64, ONE - 64


def scale_index(ones: int, count: int) -> int:
    """Return the index in `SCALE` that codes ``ones`` of ``count`` bits in the fewest bits."""
    if not count:
        return SCALE_SIZE // 2
    probability = SCALE / ONE
    cost = -(ones * np.log2(probability) + (count - ones) * np.log2(1 - probability))
    return int(np.argmin(cost))


@compiled
def adapt(probability: np.uint32, seen: int, bit: int) -> np.uint32:
    """Move a context's probability towards the bit it has just seen."""
    target = ONE if bit else 0
    moved = np.int64(probability) + (((target - np.int64(probability)) * RECIPROCALS[seen]) >> 16)
    return np.uint32(min(max(moved, _FLOOR), _CEILING))
