"""The compiled heart of the side stream: bits, numbers and residuals, written and read alike.

Every function takes ``writing``, the coder's ``state`` (see `CODE`), the stream's ``data``, and the
contexts: their ``probability`` and how many bits each has ``seen``. A writer's values are passed
through; a reader's are ignored, and filled in.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pabzip.formats.context.probabilities import ADAPTATION_LIMIT, HALF, adapt
from pabzip.formats.context.range_coder import decode_bit, encode_bit
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


@compiled
def _pass_bit(
    writing: bool,
    state: NDArray[np.uint64],
    data: NDArray[np.uint8],
    probability: NDArray[np.uint32],
    seen: NDArray[np.int64],
    context: int,
    bit: int,
) -> int:
    """Pass one bit under ``context`` and let the context learn it."""
    chance = probability[context]
    bit = _pass_fixed(writing, state, data, chance, bit)
    probability[context] = adapt(chance, seen[context], bit)
    seen[context] = min(seen[context] + 1, ADAPTATION_LIMIT)
    return bit


@compiled
def _pass_fixed(
    writing: bool,
    state: NDArray[np.uint64],
    data: NDArray[np.uint8],
    chance: np.uint32,
    bit: int,
) -> int:
    """Pass one bit under a fixed probability."""
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
    writing: bool,
    state: NDArray[np.uint64],
    data: NDArray[np.uint8],
    probability: NDArray[np.uint32],
    seen: NDArray[np.int64],
    contexts: NDArray[np.int64],
    held: NDArray[np.uint8],
) -> None:
    """Pass one bit under each context."""
    for index in range(len(contexts)):
        context = contexts[index]
        held[index] = _pass_bit(writing, state, data, probability, seen, context, held[index])


@compiled
def pass_plain(
    writing: bool,
    state: NDArray[np.uint64],
    data: NDArray[np.uint8],
    probability: NDArray[np.uint32],
    seen: NDArray[np.int64],
    value: int,
    width: int,
) -> int:
    """Pass ``width`` bits under probability one half, most significant first."""
    result = 0
    for index in range(width):
        bit = (value >> (width - 1 - index)) & 1
        result = 2 * result + _pass_fixed(writing, state, data, np.uint32(HALF), bit)
    return result


@compiled
def _pass_number(
    writing: bool,
    state: NDArray[np.uint64],
    data: NDArray[np.uint8],
    probability: NDArray[np.uint32],
    seen: NDArray[np.int64],
    base: int,
    value: int,
) -> int:
    """Pass a number: the bits of value + 1 behind its leading one, their count in unary.

    Returns -1 when a stream to be read holds none below 2**48 - 1.
    """
    width = 0
    while width < NUMBER_BITS:
        more = 1 if (value + 1) >> (width + 1) else 0
        if not _pass_bit(writing, state, data, probability, seen, base + width, more):
            low = (value + 1) & ((1 << width) - 1)
            rest: int = pass_plain(writing, state, data, probability, seen, low, width)
            return (1 << width) + rest - 1
        width += 1
    return -1


@compiled
def pass_numbers(
    writing: bool,
    state: NDArray[np.uint64],
    data: NDArray[np.uint8],
    probability: NDArray[np.uint32],
    seen: NDArray[np.int64],
    base: int,
    held: NDArray[np.int64],
) -> bool:
    """Pass every number of ``held``; return False where one is out of range."""
    for index in range(len(held)):
        held[index] = _pass_number(writing, state, data, probability, seen, base, held[index])
        if held[index] < 0:
            return False
    return True


@compiled
def pass_residuals(
    writing: bool,
    state: NDArray[np.uint64],
    data: NDArray[np.uint8],
    probability: NDArray[np.uint32],
    seen: NDArray[np.int64],
    base: int,
    scale: int,
    held: NDArray[np.int64],
) -> bool:
    """Pass signed numbers: is it 0, its sign, the high part in unary, the low bits plainly."""
    first = base + scale * (2 + UNARY_LIMIT)
    escape = base + SCALES * (2 + UNARY_LIMIT)
    shift = max(0, scale - 2)
    for index in range(len(held)):
        value = held[index]
        if not _pass_bit(writing, state, data, probability, seen, first, 1 if value else 0):
            held[index] = 0
            continue
        negative = _pass_bit(
            writing, state, data, probability, seen, first + 1, 1 if value < 0 else 0
        )
        size = abs(value) - 1
        target, high = size >> shift, 0
        while high < UNARY_LIMIT:
            more = 1 if target > high else 0
            if not _pass_bit(writing, state, data, probability, seen, first + 2 + high, more):
                break
            high += 1
        if high == UNARY_LIMIT:
            over = target - high
            over = _pass_number(writing, state, data, probability, seen, escape, over)
            if over < 0 or over > RESIDUAL_LIMIT:
                return False
            high += over
        low = pass_plain(writing, state, data, probability, seen, size & ((1 << shift) - 1), shift)
        size = (high << shift) + low
        if size >= RESIDUAL_LIMIT:
            return False
        held[index] = -(size + 1) if negative else size + 1
    return True
