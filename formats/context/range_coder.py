"""A binary range coder: 32-bit state, carries propagated in place, static 16-bit probabilities.

The state travels in local variables, so that the compiler keeps it in registers. A stream's
trailing zero bytes are not stored; a decoder reads zeros past the end. Source: Martin, "Range
encoding" (1979), in the binary form that LZMA made common; SPEC.md states it exactly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pabzip.seeds.compiled import compiled

_TOP = np.uint64(1 << 24)
_CARRY = np.uint64(1 << 32)
_LOW_BITS = np.uint64(0xFFFFFFFF)
_FULL = np.uint64(0xFFFFFFFF)
_EIGHT, _SIXTEEN, _BYTE_SHIFT = np.uint64(8), np.uint64(16), np.uint64(24)

FLUSH_BYTES = 4
"""Most bytes that finishing a stream adds."""


def with_room(data: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return a writer's buffer with room for ``size`` bytes: the same, or a larger copy."""
    if size <= len(data):
        return data
    grown = np.zeros(max(size, 2 * len(data)), dtype=np.uint8)
    grown[: len(data)] = data
    return grown


@compiled
def encode_bit(
    low: np.uint64,
    span: np.uint64,
    position: int,
    out: NDArray[np.uint8],
    bit: int,
    probability: np.uint32,
) -> tuple[np.uint64, np.uint64, int]:
    """Encode one bit; return the new ``(low, span, position)``. ``out`` must have room."""
    bound = (span >> _SIXTEEN) * np.uint64(probability)
    if bit:
        span = bound
    else:
        low += bound
        span -= bound
        if low >= _CARRY:
            low &= _LOW_BITS
            _carry(out, position)
    while span < _TOP:
        out[position] = np.uint8(low >> _BYTE_SHIFT)
        position += 1
        low = (low << _EIGHT) & _LOW_BITS
        span <<= _EIGHT
    return low, span, position


@compiled
def _carry(out: NDArray[np.uint8], position: int) -> None:
    """Add one to the number that the bytes before ``position`` spell."""
    place = position - 1
    while out[place] == 255:
        out[place] = 0
        place -= 1
    out[place] += np.uint8(1)


@compiled
def finish(
    low: np.uint64, span: np.uint64, position: int, out: NDArray[np.uint8], begin: int
) -> int:
    """Write the shortest end of the stream that began at ``begin``; return where it ends."""
    for count in range(FLUSH_BYTES + 1):
        rest = (np.uint64(1) << np.uint64(32 - 8 * count)) - np.uint64(1)
        value = (low + rest) & ~rest
        if value < low + span:
            if value >= _CARRY:
                value &= _LOW_BITS
                _carry(out, position)
            for index in range(count):
                out[position] = np.uint8((value >> np.uint64(24 - 8 * index)) & np.uint64(255))
                position += 1
            break
    while position > begin and out[position - 1] == 0:
        position -= 1
    return position


@compiled
def start_decoding(
    data: NDArray[np.uint8], begin: int, end: int
) -> tuple[np.uint64, np.uint64, int]:
    """Return the first ``(code, span, position)`` of the stream ``data[begin:end]``."""
    code = np.uint64(0)
    for index in range(4):
        byte = data[begin + index] if begin + index < end else np.uint8(0)
        code = (code << _EIGHT) | np.uint64(byte)
    return code, _FULL, begin + 4


@compiled
def decode_bit(
    code: np.uint64,
    span: np.uint64,
    position: int,
    data: NDArray[np.uint8],
    end: int,
    probability: np.uint32,
) -> tuple[np.uint64, np.uint64, int, int]:
    """Decode one bit; return the new ``(code, span, position)`` and the bit."""
    bound = (span >> _SIXTEEN) * np.uint64(probability)
    if code < bound:
        span = bound
        bit = 1
    else:
        code -= bound
        span -= bound
        bit = 0
    while span < _TOP:
        byte = data[position] if position < end else np.uint8(0)
        code = ((code << _EIGHT) | np.uint64(byte)) & _LOW_BITS
        span <<= _EIGHT
        position += 1
    return code, span, position, bit
