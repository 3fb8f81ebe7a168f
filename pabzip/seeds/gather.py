"""Magnitudes at scattered places: for readers that need some weights of a tensor, not all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pabzip.seeds.compiled import compiled
from pabzip.seeds.kernels import leading_zeros as leading_zeros
from pabzip.seeds.kernels import philox_words, word_magnitudes


@compiled
def picked_magnitudes(
    key: tuple[np.uint32, np.uint32],
    stream: np.uint32,
    kind: int,
    table: NDArray[np.uint32],
    elements: NDArray[np.int64],
    words: NDArray[np.uint32],
    magnitudes: NDArray[np.uint32],
) -> None:
    """Write the word and the magnitude of each of ``elements``.

    Elements ascend, and the last lies less than 2**33 after the first. A block that holds several
    of them is computed once.
    """
    count = len(elements)
    first = elements[0] >> 2
    places = np.empty(count, dtype=np.uint32)
    slots = np.empty(count, dtype=np.uint32)
    blocks = 0
    last = np.int64(-1)
    for i in range(count):
        block = (elements[i] >> 2) - first
        places[blocks] = block
        blocks += block != last
        last = block
        slots[i] = 4 * (blocks - 1) + (elements[i] & 3)
    drawn = np.empty(4 * blocks, dtype=np.uint32)
    philox_words(key, stream, np.uint64(first), places, blocks, drawn)
    for i in range(count):
        words[i] = drawn[slots[i]]
    word_magnitudes(kind, words[:count], table, magnitudes[:count])
