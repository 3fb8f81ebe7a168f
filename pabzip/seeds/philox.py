"""Philox4x32-10 in plain numpy: the random bits behind every seeded tensor.

The generator is counter based: block ``b`` of a stream is a function of the seed, the stream and
``b`` alone. Hence any weight can be made alone, in any order, on any number of threads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 10
WORDS_PER_BLOCK = 4
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(counters: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Encrypt counters with ten rounds of Philox4x32.

    Args:
        counters: uint32, shape ``(blocks, 4)``.
        key: two 32-bit words.

    Returns:
        Random words, uint32, shape ``(blocks, 4)``.

    Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011),
    Section 3.3; constants and word order as in the authors' Random123, whose published known
    answers are among the tests.
    """
    c0, c1, c2, c3 = (counters[:, word].astype(np.uint64) for word in range(WORDS_PER_BLOCK))
    k0, k1 = key
    for _ in range(ROUNDS):
        first = c0 * np.uint64(MULTIPLIERS[0])
        second = c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (second >> _HALF) ^ c1 ^ np.uint64(k0),
            second & _LOW,
            (first >> _HALF) ^ c3 ^ np.uint64(k1),
            first & _LOW,
        )
        k0 = (k0 + KEY_INCREMENTS[0]) & 0xFFFFFFFF
        k1 = (k1 + KEY_INCREMENTS[1]) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3), axis=1).astype(np.uint32)


def split_seed(seed: int) -> tuple[int, int]:
    """Return the Philox key of a 64-bit seed: its low and its high 32 bits."""
    return seed & 0xFFFFFFFF, seed >> 32


def words(seed: int, stream: int, start: int, stop: int) -> NDArray[np.uint32]:
    """Return the random words of elements ``start`` to ``stop`` of one stream: uint32, flat.

    The counter of block ``b``, which serves elements ``4b`` to ``4b + 3``, is
    ``(b mod 2**32, b >> 32, stream, 0)``.
    """
    first_block = start // WORDS_PER_BLOCK
    last_block = -(-stop // WORDS_PER_BLOCK)
    blocks = np.arange(first_block, last_block, dtype=np.uint64)
    counters = np.zeros((len(blocks), WORDS_PER_BLOCK), dtype=np.uint32)
    counters[:, 0] = blocks & _LOW
    counters[:, 1] = blocks >> _HALF
    counters[:, 2] = stream
    offset = start - first_block * WORDS_PER_BLOCK
    return philox4x32(counters, split_seed(seed)).reshape(-1)[offset : offset + stop - start]
