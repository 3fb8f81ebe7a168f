"""The quantile of the standard normal in 32-bit integers, by table.

For an odd ``v`` of 32 bits the upper-tail probability is ``p = v / 2**33``, and the magnitude of
the normal deviate is the x with P(X > x) = p, in fixed point with 28 bits after the point::

    octave  = leading zeros of v                  (0 to 31: how small p is)
    m       = v << octave                         (top bit set)
    segment = (m >> 25) & 63                      (64 equal parts of the octave)
    rest    = (m << 7) mod 2**32                  (place in the segment, a 32-bit fraction)
    n       = max(1, a - mulhi(rest, b - mulhi(rest, c)))     mulhi(x, y) = (x * y) >> 32

with uint32 coefficients a, b, c from column ``64 * octave + segment`` of the table. No step can
pass below zero or above 2**32. The distance from the exact quantile is below 2.4e-8 everywhere.

The table is part of the file format. ``tools/make_normal_table.py`` made it.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import SeedError

OCTAVES = 32
SEGMENTS = 64
SHA256 = "51234bae59cef983e4f8366f0cd41dc1b885af745d6e5de74b0af133873d7f08"
"""Digest of the table's numbers: uint32, little end first, all of a, then b, then c."""


@cache
def load() -> NDArray[np.uint32]:
    """Return the coefficients a, b, c: uint32, shape ``(3, 2048)``, read-only.

    Raises:
        SeedError: the installed table is not the one that the file format names.
    """
    resource = resources.files("pabzip.seeds").joinpath("normal_table.npy")
    with resource.open("rb") as file:
        table: NDArray[np.uint32] = np.load(file, allow_pickle=False)
    digest = hashlib.sha256(table.astype("<u4").tobytes()).hexdigest()
    if table.shape != (3, OCTAVES * SEGMENTS) or digest != SHA256:
        raise SeedError(
            f"normal_table.npy: expected SHA-256 {SHA256}, found {digest}; reinstall pabzip"
        )
    table = np.ascontiguousarray(table, dtype=np.uint32)
    table.flags.writeable = False
    return table
