"""The building blocks of the CPU kernels: words, magnitudes, one weight.

Numba widens integers to 64 bits and turns a mix of int64 and uint64 into float64, so every operand
of the integer arithmetic is unsigned, and results are cut back to 32 bits by hand. The loops are
plain on purpose: LLVM makes vector instructions of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from pabzip.seeds.compiled import compiled
from pabzip.seeds.philox import KEY_INCREMENTS, MULTIPLIERS, ROUNDS

NORMAL, UNIFORM, SIGNED_CONSTANT = 0, 1, 2

_ONE, _SIX, _SEVEN, _SEGMENT_SHIFT = np.uint32(1), np.uint32(6), np.uint32(7), np.uint32(25)
_SEGMENT_MASK, _SIGN_SHIFT = np.uint32(63), np.uint32(31)
_HALF, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)
_MULTIPLIER_0, _MULTIPLIER_1 = (np.uint64(word) for word in MULTIPLIERS)
_INCREMENT_0, _INCREMENT_1 = (np.uint64(word) for word in KEY_INCREMENTS)


def _typed_leading_zeros(_context: Any, _value: Any) -> Any:
    """Give numba the type and the machine code of `leading_zeros`."""

    def generate(_ctx: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint32(types.uint32), generate


leading_zeros: Any = intrinsic(_typed_leading_zeros)
"""Leading zeros of a uint32 that is not 0, as uint32; to be called from compiled code alone."""


@compiled
def philox_words(
    key: tuple[np.uint32, np.uint32],
    stream: np.uint32,
    first_block: np.uint64,
    places: NDArray[np.uint32],
    count: int | np.int64,
    words: NDArray[np.uint32],
) -> None:
    """Write the four words of each block ``first_block + places[:count]``.

    The state stays in 64-bit variables with 32-bit values: the vector units multiply such lanes as
    they are, which is twice as fast as widening 32-bit ones.
    """
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for j in range(count):
        block = first_block + np.uint64(places[j])
        c0, c1, c2, c3 = block & _LOW, block >> _HALF, np.uint64(stream), np.uint64(0)
        r0, r1 = k0, k1
        for _ in range(ROUNDS):
            first = c0 * _MULTIPLIER_0
            second = c2 * _MULTIPLIER_1
            c0, c1 = (second >> _HALF) ^ c1 ^ r0, second & _LOW
            c2, c3 = (first >> _HALF) ^ c3 ^ r1, first & _LOW
            r0 = (r0 + _INCREMENT_0) & _LOW
            r1 = (r1 + _INCREMENT_1) & _LOW
        words[4 * j] = c0
        words[4 * j + 1] = c1
        words[4 * j + 2] = c2
        words[4 * j + 3] = c3


@compiled
def word_magnitudes(
    kind: int, words: NDArray[np.uint32], table: NDArray[np.uint32], out: NDArray[np.uint32]
) -> None:
    """Turn words into fixed-point magnitudes; see `pabzip.seeds.reference.word_magnitudes`."""
    if kind == NORMAL:
        for i in range(len(out)):
            value = np.uint32(np.uint32(words[i] << _ONE) | _ONE)
            octave = leading_zeros(value)
            aligned = np.uint32(value << octave)
            column = np.uint32(octave << _SIX) + (
                np.uint32(aligned >> _SEGMENT_SHIFT) & _SEGMENT_MASK
            )
            rest = np.uint64(np.uint32(aligned << _SEVEN))
            inner = table[1, column] - np.uint32((rest * np.uint64(table[2, column])) >> _HALF)
            drop = np.uint32((rest * np.uint64(np.uint32(inner))) >> _HALF)
            out[i] = max(np.uint32(table[0, column] - drop), _ONE)
    elif kind == UNIFORM:
        for i in range(len(out)):
            out[i] = np.uint32(np.uint32(words[i] << _ONE) | _ONE)
    else:
        out[:] = _ONE


@compiled
def one_weight(magnitude: np.uint32, word: np.uint32, factor: np.float32) -> np.float32:
    """Round a magnitude to float32, multiply once, and put the word's top bit as the sign."""
    positive = np.float32(magnitude) * factor
    return -positive if (word >> _SIGN_SHIFT) != 0 else positive
