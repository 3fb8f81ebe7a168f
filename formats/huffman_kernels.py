"""Compiled loops of the `huffman` coder: codes to 64-bit words, the first bit on top, and back.

A run of pruned weights is a run of zero bits, so the decoder takes it in one step by counting
leading zeros: the time goes with the survivors, not with the weights. Numba turns a mix of int64
and uint64 into float64, so every shift is between unsigned operands.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pabzip.seeds.compiled import compiled
from pabzip.seeds.kernels import leading_zeros

_ONE = np.uint64(1)


@compiled
def encode_words(codes: NDArray[np.int8], words: NDArray[np.uint64]) -> None:
    """Set the bits of ``codes`` (all 0, +1 or -1) in ``words``, which start as zeros."""
    bit = 0
    for place in range(codes.size):
        code = codes[place]
        if code != 0:
            words[bit >> 6] |= _ONE << np.uint64(63 - (bit & 63))
            bit += 1
            if code < 0:
                words[bit >> 6] |= _ONE << np.uint64(63 - (bit & 63))
        bit += 1


@compiled
def decode_words(words: NDArray[np.uint64], bits: int, codes: NDArray[np.int8]) -> int:
    """Write the survivors among ``codes``, which start as zeros, and return the bits they took.

    That is -1 where the data ended before the codes did. ``words`` are at least ``bits // 64 + 1``,
    zeros after ``bits``: one more than these need, so that the word after any bit exists.
    """
    bit, place, count = 0, 0, codes.size
    while place < count:
        if bit >= bits:
            return -1
        shift = bit & 63
        window = words[bit >> 6] << np.uint64(shift)
        if shift:
            window |= words[(bit >> 6) + 1] >> np.uint64(64 - shift)
        left = 64
        while left > 0:
            zeros: Any = np.int64(leading_zeros(window))
            run = min(zeros, left)
            if run >= left - 1:  # the next survivor's two bits are not both in the window
                place += run
                bit += run
                break
            place += run
            bit += run
            if place >= count:
                break
            window <<= np.uint64(run + 1)
            codes[place] = 1 - 2 * np.int64(window >> np.uint64(63))
            window <<= _ONE
            place += 1
            bit += 2
            left -= run + 2
            if place >= count:
                break
    return bit - (place - count)
