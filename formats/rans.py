"""A static order-0 coder of bytes: a range variant of asymmetric numeral systems (rANS).

A stream has one table of frequencies, which add up to 2**15, and four interleaved coders that share
one sequence of 32-bit words. Everything is integers, so that the bytes are the same on any machine.
It takes about 0.03 % more than the order-0 entropy of a million bytes, and decodes some 400 million
a second on one core.

Source: Duda, "Asymmetric numeral systems: entropy coding combining speed of Huffman coding with
compression rate of arithmetic coding" (arXiv 1311.2540, 2013); the interleaving is that of Giesen,
"Interleaved entropy coders" (arXiv 1402.3392, 2014). SPEC.md, section 4, states every step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.seeds.compiled import compiled

PRECISION = 15
"""Frequencies of a table add up to 2**PRECISION."""

TOTAL = 1 << PRECISION
"""Sum of a table's frequencies."""

LANES = 4
"""Coders of a stream: symbol number i is that of coder i mod 4."""

STATE_BYTES = 8 * LANES
"""Bytes of the coders' states, between table and words."""

SYMBOLS = 256

_LOWEST = np.uint64(1 << 31)  # states lie from here up to, and not at, 2**63
_WORD = np.uint64(32)
_BITS = np.uint64(PRECISION)
_SLOT = np.uint64(TOTAL - 1)
_SHORT = 128  # frequencies below it take one byte in a table, all others two


def _typed_high_product(_context: Any, left: Any, right: Any) -> Any:
    """Give numba the type and the machine code of `_high_product`."""

    def generate(_ctx: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(*(builder.zext(argument, wide) for argument in arguments))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(left, right), generate


_high_product: Any = intrinsic(_typed_high_product)
"""The upper 64 bits of the product of two uint64; to be called from compiled code alone."""


@compiled
def histogram(symbols: NDArray[np.uint8], counts: NDArray[np.int64]) -> None:
    """Write how often each byte occurs: int64 (256,)."""
    four = np.zeros((4, SYMBOLS), dtype=np.int64)  # a run of one byte does not wait for itself
    whole = len(symbols) // 4 * 4
    for at in range(0, whole, 4):
        four[0, symbols[at]] += 1
        four[1, symbols[at + 1]] += 1
        four[2, symbols[at + 2]] += 1
        four[3, symbols[at + 3]] += 1
    for at in range(whole, len(symbols)):
        four[0, symbols[at]] += 1
    for symbol in range(SYMBOLS):
        counts[symbol] = four[0, symbol] + four[1, symbol] + four[2, symbol] + four[3, symbol]


@compiled
def normalize(counts: NDArray[np.int64], frequencies: NDArray[np.int64]) -> None:
    """Write frequencies that add up to `TOTAL`, of the least cost for the counted bytes.

    Each is the count's share, rounded down, and at least 1 where the byte occurs. What is missing
    goes one by one to where it saves most, what is too much is taken from where it costs least, and
    then they change places for as long as that saves; of equals the lowest byte. One more of a
    frequency f saves count / (f + 1/2), nearly.

    Args:
        counts: int64 (256,), at most 2**40 in all, at least two of them above 0.
        frequencies: int64 (256,), filled in.
    """
    total, rest = np.int64(0), np.int64(TOTAL)
    for symbol in range(SYMBOLS):
        total += counts[symbol]
    for symbol in range(SYMBOLS):
        share = counts[symbol] * TOTAL // total
        frequencies[symbol] = max(share, 1) if counts[symbol] else 0
        rest -= frequencies[symbol]
    while True:
        gain = loss = -1  # where one more saves most, and one less costs least
        for symbol in range(SYMBOLS):
            count, twice = counts[symbol], 2 * frequencies[symbol]
            if count == 0:
                continue
            if gain < 0 or count * (2 * frequencies[gain] + 1) > counts[gain] * (twice + 1):
                gain = symbol
            if twice > 2 and (
                loss < 0 or count * (2 * frequencies[loss] - 1) < counts[loss] * (twice - 1)
            ):
                loss = symbol
        if rest > 0:
            frequencies[gain] += 1
            rest -= 1
        elif rest < 0:
            frequencies[loss] -= 1
            rest += 1
        elif (
            loss >= 0
            and gain != loss
            and (
                counts[gain] * (2 * frequencies[loss] - 1)
                > counts[loss] * (2 * frequencies[gain] + 1)
            )
        ):
            frequencies[gain] += 1
            frequencies[loss] -= 1
        else:
            return


@compiled
def cost(counts: NDArray[np.int64], frequencies: NDArray[np.int64]) -> np.int64:
    """Return about how many bytes the words of a stream take: at most 0.001 bits a byte off."""
    bits = np.int64(0)  # with 12 after the binary point
    for symbol in range(SYMBOLS):
        if counts[symbol] == 0:
            continue
        value, whole = np.uint64(frequencies[symbol]), np.int64(0)
        while value >> np.uint64(whole + 1):
            whole += 1
        value <<= np.uint64(31 - whole)
        fraction = np.int64(0)
        for _ in range(12):  # squares of a number from 1 to 2 give the bits of its logarithm
            value = (value * value) >> np.uint64(31)
            above = np.int64(value >> _WORD)
            value >>= np.uint64(above)
            fraction = 2 * fraction + above
        bits += counts[symbol] * (((PRECISION - whole) << 12) - fraction)
    return (bits >> 15) + 1


@compiled
def _prepare(frequencies, limits, factors, shifts, starts, rests):  # type: ignore[no-untyped-def]
    """Write what encoding needs of each byte; a division by a frequency becomes a product.

    Giesen, "rans64.h": for f above 1, x div f = (x factor) div 2^(64 + shift), exact for x below
    2^63 with the factor ceil(2^(63 + n) / f), n the bits of f - 1, and shift n - 1.
    """
    start = np.uint64(0)
    for symbol in range(SYMBOLS):
        frequency = np.uint64(frequencies[symbol])
        if frequency == 0:
            continue
        limits[symbol] = frequency << np.uint64(63 - PRECISION)
        rests[symbol] = np.uint64(TOTAL) - frequency
        if frequency == 1:  # the product gives x - 1, made up for by the start
            factors[symbol] = ~np.uint64(0)
            shifts[symbol] = 0
            starts[symbol] = start + np.uint64(TOTAL - 1)
        else:
            bits = np.uint64(0)
            while (np.uint64(1) << bits) < frequency:
                bits += np.uint64(1)
            high = np.uint64(1) << (bits + np.uint64(31))
            low = ((high % frequency) << _WORD) + frequency - np.uint64(1)
            factors[symbol] = ((high // frequency) << _WORD) + low // frequency
            shifts[symbol] = bits - np.uint64(1)
            starts[symbol] = start
        start += frequency


@compiled
def _encode(symbols, limits, factors, shifts, starts, rests, states, words):  # type: ignore[no-untyped-def]
    """Encode from the last byte to the first; words fill up from the end.

    Returns:
        The place of the first word.
    """
    place = len(words)
    for at in range(len(symbols) - 1, -1, -1):
        symbol = symbols[at]
        state = states[at & (LANES - 1)]
        if state >= limits[symbol]:
            place -= 1
            words[place] = np.uint32(state)
            state >>= _WORD
        quotient = _high_product(state, factors[symbol]) >> shifts[symbol]
        states[at & (LANES - 1)] = state + starts[symbol] + quotient * rests[symbol]
    return place


@compiled
def _step(state, slots, spans, words, place):  # type: ignore[no-untyped-def]
    """Decode one byte; ``words[place]`` is read whether it is needed or not."""
    slot = state & _SLOT
    symbol = slots[slot]
    span = spans[symbol]
    state = np.uint64(span >> np.uint32(16)) * (state >> _BITS)
    state += slot - np.uint64(span & np.uint32(0xFFFF))
    word = np.uint64(words[place])
    low = state < _LOWEST
    return (state << _WORD) | word if low else state, place + np.int64(low), symbol


@compiled
def _decode(frequencies, states, words, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` with bytes, and leave the last states in ``states``.

    Returns:
        The words taken, or -1 where there are not enough.
    """
    slots = np.empty(TOTAL, dtype=np.uint8)
    spans = np.empty(SYMBOLS, dtype=np.uint32)  # frequency in the upper half, start in the lower
    start = np.int64(0)
    for symbol in range(SYMBOLS):
        frequency = frequencies[symbol]
        spans[symbol] = np.uint32((frequency << 16) | (start & 0xFFFF))
        slots[start : start + frequency] = symbol
        start += frequency
    first, second, third, fourth = states[0], states[1], states[2], states[3]
    at, place = 0, np.int64(0)
    safe = len(words) - LANES
    while at + LANES <= len(out) and place <= safe:
        first, place, out[at] = _step(first, slots, spans, words, place)
        second, place, out[at + 1] = _step(second, slots, spans, words, place)
        third, place, out[at + 2] = _step(third, slots, spans, words, place)
        fourth, place, out[at + 3] = _step(fourth, slots, spans, words, place)
        at += LANES
    states[0], states[1], states[2], states[3] = first, second, third, fourth
    rest = np.zeros(LANES + 1, dtype=np.uint32)  # the last words, of which none is read too much
    while at < len(out):
        left = len(words) - place
        if left > LANES:
            left = np.int64(LANES)
        rest[:left] = words[place : place + left]
        lane, taken = at & (LANES - 1), np.int64(0)
        states[lane], taken, out[at] = _step(states[lane], slots, spans, rest, taken)
        if taken > left:
            return -1
        place += taken
        at += 1
    return place


def encode(symbols: NDArray[np.uint8], frequencies: NDArray[np.int64]) -> bytes:
    """Return bytes as a stream: the table, the four states, the words.

    Args:
        symbols: uint8, flat.
        frequencies: int64 (256,), of a sum of `TOTAL`, above 0 for each byte that occurs.
    """
    prepared = [np.zeros(SYMBOLS, dtype=np.uint64) for _ in range(5)]
    _prepare(frequencies, *prepared)
    states = np.full(LANES, _LOWEST, dtype=np.uint64)
    # A byte takes at most 15 bits and a 16th of a thousandth, a state at most one word too much.
    words = np.empty(len(symbols) // 2 + 2 * LANES, dtype=np.uint32)
    place = _encode(symbols, *prepared, states, words)
    table = write_table(frequencies)
    return table + states.astype("<u8").tobytes() + words[place:].astype("<u4").tobytes()


def decode(stream: memoryview, out: NDArray[np.uint8], place: str) -> None:
    """Fill ``out``, uint8 and flat, with the bytes of a stream.

    Raises:
        FormatError: it is not exactly a stream of that many bytes; the message names ``place``.
    """
    frequencies, size = read_table(stream, place)
    rest = len(stream) - size - STATE_BYTES
    if rest < 0 or rest % 4:
        raise FormatError(
            place,
            f"expected {STATE_BYTES} bytes of states and whole words of 4 after the table, found "
            f"{len(stream) - size} bytes",
        )
    states = np.frombuffer(stream, "<u8", LANES, size).astype(np.uint64)
    words = np.frombuffer(stream, "<u4", rest // 4, size + STATE_BYTES).astype(np.uint32)
    if ((states < _LOWEST) | (states >> np.uint64(63) != 0)).any():
        raise FormatError(place, "expected states from 2^31 to 2^63 - 1, found others")
    taken = _decode(frequencies, states, words, out)
    if taken != len(words):
        found = "more" if taken < 0 else str(taken)
        raise FormatError(place, f"expected {len(out)} bytes of {len(words)} words, needs {found}")
    if (states != _LOWEST).any():
        raise FormatError(place, "expected all states at 2^31 after the last byte, found others")


def write_table(frequencies: NDArray[np.int64]) -> bytes:
    """Return a table's bytes; it ends where the frequencies add up."""
    table, left, zeros = bytearray(), TOTAL, 0
    for frequency in frequencies.tolist():
        if left == 0:
            break
        if frequency == 0:
            zeros += 1
            continue
        if zeros:
            table += bytes([0, zeros - 1])
            zeros = 0
        if frequency < _SHORT:
            table.append(frequency)
        else:
            table += (frequency - _SHORT + (_SHORT << 8)).to_bytes(2, "big")
        left -= frequency
    return bytes(table)


def read_table(stream: memoryview, place: str) -> tuple[NDArray[np.int64], int]:
    """Return the frequencies that a stream begins with, int64 (256,), and the table's bytes.

    Raises:
        FormatError: no table that adds up to `TOTAL`; the message names ``place``.
    """
    frequencies = np.zeros(SYMBOLS, dtype=np.int64)
    symbol, left, at = 0, TOTAL, 0
    data = bytes(stream[: 2 * SYMBOLS])
    while left > 0 and symbol < SYMBOLS and at < len(data):
        value = data[at]
        two = value == 0 or value >= _SHORT
        second = data[at + 1] if two and at + 1 < len(data) else 0
        at += 2 if two else 1
        if value == 0:
            symbol += 1 + second
            continue
        frequency = (value - _SHORT << 8) + second + _SHORT if two else value
        frequencies[symbol] = frequency
        left -= frequency
        symbol += 1
    if left or at > len(data) or symbol > SYMBOLS:
        raise FormatError(
            place, f"expected a table of frequencies that add up to {TOTAL}, found another"
        )
    return frequencies, at
