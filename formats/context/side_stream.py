"""The side stream: one adaptive binary range coder for all side information.

Writing and reading are the same calls: a writer's methods take the value and return it, a reader's
ignore the value and return what the stream holds. So the layout of the stream is described once, in
`pabzip.formats.context.side_information`, and the two directions cannot drift apart.

Contexts are shared by all tensors of a file: what a small tensor would pay for learning its
statistics, the tensors before it have paid already.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.formats.context.model import ADAPTATION_LIMIT, HALF, adapt
from pabzip.formats.context.range_coder import (
    FLUSH_BYTES,
    decode_bit,
    encode_bit,
    finish,
    start_decoding,
    with_room,
)
from pabzip.seeds.compiled import compiled

NUMBER_BITS = 48
"""Numbers in the side stream lie below 2**48 - 1."""

UNARY_LIMIT = 20
"""A residual whose high part reaches this is completed by a number."""

SCALES = 16
"""Classes of how wide residuals spread; each has contexts of its own."""

RESIDUAL_LIMIT = 1 << 24
"""Of a residual's absolute value; sums of levels and factors stay far inside 32 bits."""

CODE, SPAN, POSITION, END = range(4)
"""Places of the range coder's state; a writer's ``low`` is where a reader's code is."""


class _Coder(NamedTuple):
    """A range coder and its adaptive contexts, which compiled code changes in place.

    Attributes:
        state: uint64[4]; see `CODE`.
        data: uint8, the stream.
        probability: uint32, of a 1 under each context, times 65536.
        seen: int64, bits that each context has seen, up to `ADAPTATION_LIMIT`.
    """

    state: NDArray[np.uint64]
    data: NDArray[np.uint8]
    probability: NDArray[np.uint32]
    seen: NDArray[np.int64]


@compiled
def _pass_bit(writing: bool, coder: _Coder, context: int, bit: int) -> int:
    """Pass one bit under ``context`` and let the context learn it."""
    chance = coder.probability[context]
    bit = _pass_fixed(writing, coder, chance, bit)
    coder.probability[context] = adapt(chance, coder.seen[context], bit)
    coder.seen[context] = min(coder.seen[context] + 1, ADAPTATION_LIMIT)
    return bit


@compiled
def _pass_fixed(writing: bool, coder: _Coder, chance: np.uint32, bit: int) -> int:
    """Pass one bit under a fixed probability."""
    state, data = coder.state, coder.data
    code, span, position = state[CODE], state[SPAN], np.int64(state[POSITION])
    if writing:
        code, span, position = encode_bit(code, span, position, data, bit, chance)
    else:
        end = np.int64(state[END])
        code, span, position, bit = decode_bit(code, span, position, data, end, chance)
    state[CODE], state[SPAN], state[POSITION] = code, span, np.uint64(position)
    return bit


@compiled
def pass_bits(
    writing: bool, coder: _Coder, contexts: NDArray[np.int64], held: NDArray[np.uint8]
) -> None:
    """Pass one bit under each context."""
    for index in range(len(contexts)):
        context = contexts[index]
        held[index] = _pass_bit(writing, coder, context, held[index])


@compiled
def pass_plain(writing: bool, coder: _Coder, value: int, width: int) -> int:
    """Pass ``width`` bits under probability one half, most significant first."""
    result = 0
    for index in range(width):
        bit = (value >> (width - 1 - index)) & 1
        result = 2 * result + _pass_fixed(writing, coder, np.uint32(HALF), bit)
    return result


@compiled
def pass_number(writing: bool, coder: _Coder, base: int, value: int) -> int:
    """Pass a number: the bits of value + 1 behind its leading one, their count in unary.

    Returns -1 when a stream to be read holds none below 2**48 - 1.
    """
    width = 0
    while width < NUMBER_BITS:
        more = 1 if (value + 1) >> (width + 1) else 0
        if not _pass_bit(writing, coder, base + width, more):
            low = (value + 1) & ((1 << width) - 1)
            rest: int = pass_plain(writing, coder, low, width)
            return (1 << width) + rest - 1
        width += 1
    return -1


@compiled
def pass_residuals(
    writing: bool, coder: _Coder, base: int, scale: int, held: NDArray[np.int64]
) -> bool:
    """Pass signed numbers: is it 0, its sign, the high part in unary, the low bits plainly."""
    first = base + scale * (2 + UNARY_LIMIT)
    escape = base + SCALES * (2 + UNARY_LIMIT)
    shift = max(0, scale - 2)
    for index in range(len(held)):
        value = held[index]
        if not _pass_bit(writing, coder, first, 1 if value else 0):
            held[index] = 0
            continue
        negative = _pass_bit(writing, coder, first + 1, 1 if value < 0 else 0)
        size = abs(value) - 1
        target, high = size >> shift, 0
        while high < UNARY_LIMIT:
            more = 1 if target > high else 0
            if not _pass_bit(writing, coder, first + 2 + high, more):
                break
            high += 1
        if high == UNARY_LIMIT:
            over = target - high
            over = pass_number(writing, coder, escape, over)
            if over < 0 or over > RESIDUAL_LIMIT:
                return False
            high += over
        low = pass_plain(writing, coder, size & ((1 << shift) - 1), shift)
        size = (high << shift) + low
        if size >= RESIDUAL_LIMIT:
            return False
        held[index] = -(size + 1) if negative else size + 1
    return True


NUMBER_CONTEXTS = NUMBER_BITS + 1
RESIDUAL_CONTEXTS = SCALES * (2 + UNARY_LIMIT) + NUMBER_CONTEXTS

_WORST_BITS = 128  # of one residual or number
_WORST_BYTES_A_BIT = 2


class SideStream:
    """A side stream, to write or to read.

    Args:
        data: the stream to read, or None to write one.
        contexts: number of adaptive contexts.
    """

    def __init__(self, data: bytes | None, contexts: int):
        self.writing = data is None
        self._coder = _Coder(
            state=np.array([0, 0xFFFFFFFF, 0, 0], dtype=np.uint64),
            data=np.array(bytearray(1 << 12 if data is None else data), dtype=np.uint8),
            probability=np.full(contexts, HALF, dtype=np.uint32),
            seen=np.zeros(contexts, dtype=np.int64),
        )
        if data is not None:
            self._coder.state[:3] = start_decoding(self._coder.data, 0, len(data))
            self._coder.state[END] = len(data)

    def bits(
        self, values: NDArray[np.uint8] | int, contexts: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Pass one bit under each context; ``values`` is ignored by a reader."""
        held = np.zeros(len(contexts), dtype=np.uint8)
        if self.writing:
            held[:] = values
            self._make_room(len(contexts))
        pass_bits(self.writing, self._coder, contexts, held)
        return held

    def bit(self, value: int, context: int) -> int:
        """Pass one bit under one context."""
        return int(self.bits(value, np.array([context]))[0])

    def plain(self, value: int, width: int) -> int:
        """Pass ``width`` bits that are as good as random, most significant first."""
        if self.writing:
            self._make_room(width)
        return int(pass_plain(self.writing, self._coder, value, width))

    def number(self, value: int, base: int) -> int:
        """Pass one number of at least 0, under the ``NUMBER_CONTEXTS`` contexts from ``base``.

        Its length is adaptive, the rest plain.
        """
        if self.writing:
            self._make_room(_WORST_BITS)
        found = int(pass_number(self.writing, self._coder, base, value))
        if found < 0:
            raise FormatError("side stream", "expected numbers below 2**48, found a larger one")
        return found

    def residuals(self, values: NDArray[np.int32], base: int, count: int) -> NDArray[np.int32]:
        """Pass ``count`` signed numbers that scatter about 0, under contexts from ``base``.

        A writer also chooses the class of their spread, which travels first.
        """
        held = np.zeros(count, dtype=np.int64)
        scale = 0
        if self.writing:
            held[:] = values
            scale = min(SCALES - 1, int(np.log2(1 + np.abs(held).mean()))) if count else 0
            self._make_room(count * _WORST_BITS)
        scale = self.plain(scale, 4)
        if not pass_residuals(self.writing, self._coder, base, scale, held):
            raise FormatError("side stream", "expected residuals below 2**24, found a larger one")
        return held.astype(np.int32)

    @property
    def used_bits(self) -> float:
        """Bits that everything passed so far takes, fractions of a bit included."""
        ahead = 0 if self.writing else 4  # bytes that a reader holds from the start
        whole = 8 * (int(self._coder.state[POSITION]) - ahead)
        return whole + 32 - math.log2(int(self._coder.state[SPAN]))

    def getvalue(self) -> bytes:
        """Finish a written stream and return its bytes."""
        self._make_room(8 * FLUSH_BYTES)
        low, span, position = (self._coder.state[i] for i in (CODE, SPAN, POSITION))
        end = finish(low, span, int(position), self._coder.data, 0)
        return self._coder.data[:end].tobytes()

    def close(self) -> None:
        """Check that a stream was read to its end, and that its last byte was needed.

        Raises:
            FormatError: bytes are left over.
        """
        position, end = (int(self._coder.state[place]) for place in (POSITION, END))
        if position < end or (end and self._coder.data[end - 1] == 0):
            raise FormatError(
                "side stream",
                f"expected {position} bytes or fewer without zeros at the end, found {end}",
            )

    def _make_room(self, bits: int) -> None:
        """Make sure that ``bits`` more bits fit in the buffer of a writer."""
        size = int(self._coder.state[POSITION]) + bits * _WORST_BYTES_A_BIT + 16
        self._coder = self._coder._replace(data=with_room(self._coder.data, size))


def fold(value: int) -> int:
    """Return a signed number as one of at least 0, with the sign in the lowest bit."""
    return 2 * value if value >= 0 else -2 * value - 1


def unfold(folded: int) -> int:
    """Return the signed number that `fold` folded."""
    return folded // 2 if folded % 2 == 0 else -(folded + 1) // 2


MODE = 0  # three: a tree of two bits
SIGNS = 3  # three
UNIT = 6
PLAIN_LAYOUT = 7
ALL_ROWS = 8
ALL_COLUMNS = 9
ROW = 10
SOURCE = 11  # two: the latest earlier tensor, the one before
COLUMN = 13  # nine: each of the two earlier rows is unknown, empty or active
LAYOUT = 22
MIDDLE = LAYOUT + NUMBER_CONTEXTS
ROW_FACTORS = MIDDLE + NUMBER_CONTEXTS
COLUMN_FACTORS = ROW_FACTORS + RESIDUAL_CONTEXTS
POSITION_FACTORS = COLUMN_FACTORS + RESIDUAL_CONTEXTS
CODED_BYTES = POSITION_FACTORS + RESIDUAL_CONTEXTS
BYTES_CHANGE = CODED_BYTES + NUMBER_CONTEXTS
SURVIVORS = BYTES_CHANGE + NUMBER_CONTEXTS
COUNT = SURVIVORS + NUMBER_CONTEXTS
