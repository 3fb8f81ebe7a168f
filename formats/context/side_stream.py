"""The side stream: one adaptive binary range coder for all side information.

`pabzip.formats.context.side_information` describes its layout once, for both directions.

Contexts are shared by all tensors of a file: what a small tensor would pay for learning its
statistics, the tensors before it have paid already.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.formats.context.range_coder import (
    POSITION,
    SPAN,
    BitCoder,
    BitStream,
    Contexts,
    pass_bit,
    pass_plain,
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


@compiled
def pass_bits(coder: BitCoder, contexts: NDArray[np.int64], held: NDArray[np.uint8]) -> None:
    """Pass one bit under each context."""
    for index in range(len(contexts)):
        context = contexts[index]
        held[index] = pass_bit(coder, context, held[index])


@compiled
def pass_number(coder: BitCoder, base: int, value: int) -> int:
    """Pass a number: the bits of value + 1 behind its leading one, their count in unary.

    Returns -1 when a stream to be read holds none below 2**48 - 1.
    """
    width = 0
    while width < NUMBER_BITS:
        more = 1 if (value + 1) >> (width + 1) else 0
        if not pass_bit(coder, base + width, more):
            low = (value + 1) & ((1 << width) - 1)
            rest: int = pass_plain(coder, low, width)
            return (1 << width) + rest - 1
        width += 1
    return -1


@compiled
def pass_residuals(coder: BitCoder, base: int, scale: int, held: NDArray[np.int64]) -> bool:
    """Pass signed numbers: is it 0, its sign, the high part in unary, the low bits plainly."""
    first = base + scale * (2 + UNARY_LIMIT)
    escape = base + SCALES * (2 + UNARY_LIMIT)
    shift = max(0, scale - 2)
    for index in range(len(held)):
        value = held[index]
        if not pass_bit(coder, first, 1 if value else 0):
            held[index] = 0
            continue
        negative = pass_bit(coder, first + 1, 1 if value < 0 else 0)
        size = abs(value) - 1
        target, high = size >> shift, 0
        while high < UNARY_LIMIT:
            more = 1 if target > high else 0
            if not pass_bit(coder, first + 2 + high, more):
                break
            high += 1
        if high == UNARY_LIMIT:
            over = target - high
            over = pass_number(coder, escape, over)
            if over < 0 or over > RESIDUAL_LIMIT:
                return False
            high += over
        low = pass_plain(coder, size & ((1 << shift) - 1), shift)
        size = (high << shift) + low
        if size >= RESIDUAL_LIMIT:
            return False
        held[index] = -(size + 1) if negative else size + 1
    return True


NUMBER_CONTEXTS = NUMBER_BITS + 1
RESIDUAL_CONTEXTS = SCALES * (2 + UNARY_LIMIT) + NUMBER_CONTEXTS

_MEMORY = 24  # of a context, in bits
_WORST_BITS = 128  # of one residual or number
_WORST_BYTES_A_BIT = 2


class SideStream(BitStream):
    """A side stream, to write or to read; all of it passes through one set of contexts.

    Args:
        data: the stream to read, or None to write one.
    """

    def __init__(self, data: bytes | None):
        super().__init__(data)
        self._contexts = Contexts.fresh(COUNT, _MEMORY)

    def _coder(self, bits: int) -> BitCoder:
        """Return what passes up to ``bits`` bits."""
        return self.coder(self._contexts, bits * _WORST_BYTES_A_BIT)

    def bits(self, values: NDArray[np.uint8], contexts: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Pass one bit under each context; ``values`` is ignored by a reader."""
        held = values.copy()
        pass_bits(self._coder(len(contexts)), contexts, held)
        return held

    def bit(self, value: int, context: int) -> int:
        """Pass one bit under one context."""
        return int(pass_bit(self._coder(1), context, value))

    def plain(self, value: int, width: int) -> int:
        """Pass ``width`` bits that are as good as random, most significant first."""
        return int(pass_plain(self._coder(width), value, width))

    def number(self, value: int, base: int) -> int:
        """Pass one number of at least 0, under the ``NUMBER_CONTEXTS`` contexts from ``base``.

        Its length is adaptive, the rest plain.
        """
        found = int(pass_number(self._coder(_WORST_BITS), base, value))
        if found < 0:
            raise FormatError("side stream", "expected numbers below 2**48, found a larger one")
        return found

    def residuals(self, values: NDArray[np.int32], base: int) -> NDArray[np.int32]:
        """Pass signed numbers that scatter about 0, under contexts from ``base``.

        A writer also chooses the class of their spread, which travels first.
        """
        held = values.astype(np.int64)
        scale = 0
        if self.writing and len(held):
            scale = min(SCALES - 1, int(np.log2(1 + np.abs(held).mean())))
        scale = self.plain(scale, 4)
        if not pass_residuals(self._coder(len(held) * _WORST_BITS), base, scale, held):
            raise FormatError("side stream", "expected residuals below 2**24, found a larger one")
        return held.astype(np.int32)

    @property
    def used_bits(self) -> float:
        """Bits that everything passed so far takes, fractions of a bit included."""
        ahead = 0 if self.writing else 4  # bytes that a reader holds from the start
        whole = 8 * (int(self.state[POSITION]) - ahead)
        return whole + 32 - math.log2(int(self.state[SPAN]))


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
