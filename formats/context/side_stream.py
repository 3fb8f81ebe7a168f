"""The side stream: one adaptive range-coded stream for what the coder knows of all tensors.

Writing and reading are the same calls: a writer's methods take the value and return it, a reader's
ignore the value and return what the stream holds. So the layout of the stream is written down
once, in `pabzip.formats.context.exchange`, and the two directions cannot drift apart.

Contexts are shared by all tensors of a file: what a small tensor would pay for learning its
statistics, the tensors before it have paid already.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.formats.context.probabilities import HALF
from pabzip.formats.context.range_coder import FLUSH_BYTES, finish, start_decoding
from pabzip.formats.context.side_kernels import (
    CODE,
    END,
    NUMBER_BITS,
    POSITION,
    SCALES,
    SPAN,
    UNARY_LIMIT,
    pass_bits,
    pass_numbers,
    pass_plain,
    pass_residuals,
)

NUMBER_CONTEXTS = NUMBER_BITS + 1
RESIDUAL_CONTEXTS = SCALES * (2 + UNARY_LIMIT) + NUMBER_CONTEXTS

_WORST_BITS = 128  # of one residual or number
_WORST_BYTES_A_BIT = 2


class SideStream:
    """One direction over a side stream; `writer` and `reader` make one.

    Args:
        data: the stream to read, or None to write one.
        contexts: number of adaptive contexts.
    """

    def __init__(self, data: bytes | None, contexts: int):
        self.writing = data is None
        self._probability = np.full(contexts, HALF, dtype=np.uint32)
        self._seen = np.zeros(contexts, dtype=np.int64)
        self._state = np.zeros(4, dtype=np.uint64)
        if data is None:
            self._data = np.zeros(1 << 12, dtype=np.uint8)
            self._state[SPAN] = 0xFFFFFFFF
        else:
            self._data = np.array(bytearray(data), dtype=np.uint8)
            self._state[:3] = start_decoding(self._data, 0, len(data))
            self._state[END] = len(data)

    def bits(
        self, values: NDArray[np.uint8] | int, contexts: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Pass one bit under each context; ``values`` is ignored by a reader."""
        held = np.zeros(len(contexts), dtype=np.uint8)
        if self.writing:
            held[:] = values
            self._make_room(len(contexts))
        pass_bits(self.writing, *self._arrays(), contexts, held)
        return held

    def bit(self, value: int, context: int) -> int:
        """Pass one bit under one context."""
        return int(self.bits(value, np.array([context]))[0])

    def plain(self, value: int, width: int) -> int:
        """Pass ``width`` bits that are as good as random, most significant first."""
        if self.writing:
            self._make_room(width)
        return int(pass_plain(self.writing, *self._arrays(), value, width))

    def number(self, value: int, base: int) -> int:
        """Pass one number of at least 0, under the ``NUMBER_CONTEXTS`` contexts from ``base``."""
        return int(self.numbers(np.array([value]), base, 1)[0])

    def numbers(self, values: NDArray[np.int64], base: int, count: int) -> NDArray[np.int64]:
        """Pass ``count`` numbers of at least 0; the length of each is adaptive, the rest plain."""
        held = np.zeros(count, dtype=np.int64)
        if self.writing:
            held[:] = values
            self._make_room(count * _WORST_BITS)
        if not pass_numbers(self.writing, *self._arrays(), base, held):
            raise FormatError("side stream", "expected numbers below 2**48, found a larger one")
        return held

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
        if not pass_residuals(self.writing, *self._arrays(), base, scale, held):
            raise FormatError("side stream", "expected residuals below 2**24, found a larger one")
        return held.astype(np.int32)

    @property
    def used_bits(self) -> float:
        """Bits that everything passed so far takes, fractions of a bit included."""
        ahead = 0 if self.writing else 4  # bytes that a reader holds from the start
        whole = 8 * (int(self._state[POSITION]) - ahead)
        return whole + 32 - math.log2(int(self._state[SPAN]))

    def getvalue(self) -> bytes:
        """Finish a written stream and return its bytes."""
        self._make_room(8 * FLUSH_BYTES)
        low, span, position = (self._state[i] for i in (CODE, SPAN, POSITION))
        end = finish(low, span, int(position), self._data, 0)
        return self._data[:end].tobytes()

    def close(self) -> None:
        """Check that a stream was read to its end, and that its last byte was needed.

        Raises:
            FormatError: bytes are left over.
        """
        end = int(self._state[END])
        if int(self._state[POSITION]) < end or (end and self._data[end - 1] == 0):
            raise FormatError(
                "side stream",
                f"expected {int(self._state[POSITION])} bytes or fewer without zeros at the end, "
                f"found {end}",
            )

    def _arrays(self) -> tuple[Any, ...]:
        """Return what every compiled function takes."""
        return self._state, self._data, self._probability, self._seen

    def _make_room(self, bits: int) -> None:
        """Make sure that ``bits`` more bits fit in the buffer of a writer."""
        need = int(self._state[POSITION]) + bits * _WORST_BYTES_A_BIT + 16
        if need > len(self._data):
            grown = np.zeros(max(need, 2 * len(self._data)), dtype=np.uint8)
            grown[: len(self._data)] = self._data
            self._data = grown


def fold(value: int) -> int:
    """Return a signed number as one of at least 0, with the sign in the lowest bit."""
    return 2 * value if value >= 0 else -2 * value - 1


def unfold(folded: int) -> int:
    """Return the signed number that `fold` folded."""
    return folded // 2 if folded % 2 == 0 else -(folded + 1) // 2
