"""What tells a tensor's mask and signs, in the form that compiled code takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIGNS_KEPT, SIGNS_PLAIN, SIGNS_CODED = range(3)
"""How flips are told: there are none; one plain bit a survivor; range-coded with the mask."""


@dataclass(frozen=True, slots=True, eq=False)
class Predictor:
    """What tells the mask of a tensor's live weights, as the compiled code takes it.

    Attributes:
        scored: whether buckets follow from scores; otherwise every weight is in bucket 0.
        row_offsets: int32, levels that each live row adds.
        place_offsets: int32, levels that each live place adds.
        first: first uncertain bucket; weights of lower ones are pruned.
        last: one past the last uncertain bucket; weights from there on survive.
        chances: uint32, (30,), probability of survival of each uncertain bucket, times 65536.
        signs: `SIGNS_KEPT`, `SIGNS_PLAIN` or `SIGNS_CODED`.
        flip_chance: probability of a flip, times 65536, where signs are coded.
    """

    scored: bool
    row_offsets: NDArray[np.int32]
    place_offsets: NDArray[np.int32]
    first: int
    last: int
    chances: NDArray[np.uint32]
    signs: int
    flip_chance: int


def sign_bytes(signs: int, survivors: int) -> int:
    """Return the bytes of a chunk's plain signs."""
    return (survivors + 7) // 8 if signs == SIGNS_PLAIN else 0
