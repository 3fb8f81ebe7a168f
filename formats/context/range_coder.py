"""A binary range coder: 32-bit state, carries propagated in place, 16-bit probabilities.

A probability is that of a 1, times 65536, and never 0 or 65536: any bit can be coded. A stream's
trailing zero bytes are not stored; a decoder reads zeros past the end. Source: Martin, "Range
encoding" (1979), in the binary form that LZMA made common; SPEC.md states it exactly.

`encode_bit` and `decode_bit` keep the state in local variables, which the compiler keeps in
registers. `pass_bit` and what follows it take one direction or the other, so that one description
of a stream writes and reads it: a writer's values come back as they are, a reader's are ignored and
replaced by what the stream holds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.seeds.compiled import compiled

ONE = 1 << 16
HALF = 1 << 15
_FLOOR, _CEILING = 64, ONE - 64  # of a probability that adapts

_TOP = np.uint64(1 << 24)
_CARRY = np.uint64(1 << 32)
_LOW_BITS = _FULL = np.uint64(0xFFFFFFFF)
_EIGHT, _SIXTEEN, _BYTE_SHIFT = np.uint64(8), np.uint64(16), np.uint64(24)

FLUSH_BYTES = 4
"""Most bytes that finishing a stream adds."""


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
def finish(low: np.uint64, span: np.uint64, position: int, out: NDArray[np.uint8]) -> int:
    """Write the shortest end of the stream, which is all of ``out``; return where it ends."""
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
    while position > 0 and out[position - 1] == 0:
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


MOST_MEMORY = 24
"""Most bits that a context's probability may be the mean of."""

RECIPROCALS = np.array([ONE * 2 // (2 * n + 3) for n in range(MOST_MEMORY + 1)], np.int64)
"""Weight of the next bit in a context that has seen n, times 65536: 1 / (n + 3/2)."""

CODE, SPAN, POSITION, END = range(4)
"""Places of a range coder's state; a writer's ``low`` is where a reader's code is."""


class Contexts(NamedTuple):
    """Probabilities that follow the bits they have coded.

    Attributes:
        chances: uint32, of a 1 under each context, times 65536.
        seen: int64, bits that each context has seen, up to ``memory``.
        memory: a probability is the mean of about so many last bits: layers differ, so forget.
    """

    chances: NDArray[np.uint32]
    seen: NDArray[np.int64]
    memory: int

    @classmethod
    def fresh(cls, count: int, memory: int) -> Contexts:
        """Return contexts that have seen nothing."""
        return cls(np.full(count, HALF, dtype=np.uint32), np.zeros(count, dtype=np.int64), memory)


class BitCoder(NamedTuple):
    """A range coder and its contexts, whose arrays compiled code changes.

    Attributes:
        writing: whether bits are written, or read.
        state: uint64[4]; see `CODE`.
        data: uint8, the stream; a writer's has room for what is to pass.
        contexts: of the bits that adapt.
    """

    writing: bool
    state: NDArray[np.uint64]
    data: NDArray[np.uint8]
    contexts: Contexts


@compiled
def pass_bit(coder: BitCoder, context: int, bit: int) -> int:
    """Pass one bit under ``context``, and move its probability towards the bit."""
    state, data = coder.state, coder.data
    chances, seen, memory = coder.contexts
    chance = chances[context]
    code, span, position = state[CODE], state[SPAN], np.int64(state[POSITION])
    if coder.writing:
        code, span, position = encode_bit(code, span, position, data, bit, chance)
    else:
        end = np.int64(state[END])
        code, span, position, bit = decode_bit(code, span, position, data, end, chance)
    state[CODE], state[SPAN], state[POSITION] = code, span, np.uint64(position)
    target = ONE if bit else 0
    change = ((target - np.int64(chance)) * RECIPROCALS[seen[context]]) >> 16
    chances[context] = np.uint32(min(max(np.int64(chance) + change, _FLOOR), _CEILING))
    seen[context] = min(seen[context] + 1, memory)
    return bit


@compiled
def pass_plain(coder: BitCoder, value: int, width: int) -> int:
    """Pass ``width`` bits under probability one half, most significant first."""
    state, data = coder.state, coder.data
    code, span, position = state[CODE], state[SPAN], np.int64(state[POSITION])
    end, half, result = np.int64(state[END]), np.uint32(HALF), 0
    for index in range(width):
        bit = (value >> (width - 1 - index)) & 1
        if coder.writing:
            code, span, position = encode_bit(code, span, position, data, bit, half)
        else:
            code, span, position, bit = decode_bit(code, span, position, data, end, half)
        result = 2 * result + bit
    state[CODE], state[SPAN], state[POSITION] = code, span, np.uint64(position)
    return result


class BitStream:
    """A stream of bits, to write or to read, whose values `pass_bit` and others pass.

    Args:
        data: the stream to read, or None to write one.
    """

    def __init__(self, data: bytes | memoryview | None):
        self.writing = data is None
        self.state = np.array([0, _FULL, 0, 0], dtype=np.uint64)
        self._data = np.zeros(1 << 12, dtype=np.uint8)
        if data is not None:
            self._data = np.frombuffer(data, np.uint8).copy()  # compiled code could write to it
            self.state[:3] = start_decoding(self._data, 0, len(data))
            self.state[END] = len(data)

    def coder(self, contexts: Contexts, room: int) -> BitCoder:
        """Return what passes bits under ``contexts``; a writer's has ``room`` for so many bytes."""
        size = int(self.state[POSITION]) + room + FLUSH_BYTES
        if self.writing and size > len(self._data):
            grown = np.zeros(max(size, 2 * len(self._data)), dtype=np.uint8)
            grown[: len(self._data)] = self._data
            self._data = grown
        return BitCoder(self.writing, self.state, self._data, contexts)

    def getvalue(self) -> bytes:
        """Finish a written stream and return its bytes."""
        low, span, position = self.state[CODE], self.state[SPAN], int(self.state[POSITION])
        return self._data[: finish(low, span, position, self._data)].tobytes()

    def close(self, place: str) -> None:
        """Check that a stream was read to its end, and that its last byte was needed."""
        position, end = int(self.state[POSITION]), int(self.state[END])
        if position < end or (end and self._data[end - 1] == 0):
            raise FormatError(
                place,
                f"expected a stream of at most {position} bytes without zeros at the end, found "
                f"{end}",
            )
