"""Compiled loops that pack the codes of ternary weights, five or four a byte, and unpack them.

A *symbol* is 0 for a code of 0, 1 for +1, 2 for -1, and 3 for -0.0. Five symbols without a 3 make a
byte in base 3, four with any make one of bit pairs; the first symbol counts least. Weights are
their bit patterns as unsigned integers. Every loop takes a range, so that threads share the work,
and its own memory is a few kilobytes.

Sources: `ggml-quants.c` of llama.cpp (blocks of TQ1_0 and TQ2_0), `integrations/bitnet.py` of
transformers (planes of bit pairs).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pabzip.formats.ternary_layouts import BLOCK
from pabzip.seeds.compiled import compiled

_PIECE = 5 * 2048  # symbols at a time: they stay in the fastest cache
_BYTES = np.arange(256)
_TRITS = (_BYTES[:, None] // 3 ** np.arange(5) % 3).astype(np.uint8)
_PAIRS = (_BYTES[:, None] >> 2 * np.arange(4) & 3).astype(np.uint8)
_TRIT_SURVIVORS = np.count_nonzero(_TRITS, axis=1).astype(np.int64)
_PAIR_SURVIVORS = np.count_nonzero((_PAIRS == 1) | (_PAIRS == 2), axis=1).astype(np.int64)


@compiled
def count_packed(packed: NDArray[np.uint8], per_byte: int) -> tuple[int, int]:
    """Return the survivors of packed bytes, and how many bytes are no five trits."""
    survivors, wrong = 0, 0
    for place in range(packed.size):
        value = packed[place]
        if per_byte == 5:
            survivors += _TRIT_SURVIVORS[value]
            wrong += value >= 243
        else:
            survivors += _PAIR_SURVIVORS[value]
    return survivors, wrong


@compiled
def unpack_symbols(  # type: ignore[no-untyped-def]
    packed, per_byte, start, symbols
):
    """Write the symbols of weights ``start`` onwards: uint8."""
    place = 0
    byte, within = start // per_byte, start % per_byte
    while within and place < symbols.size:
        symbols[place] = (
            _TRITS[packed[byte], within] if per_byte == 5 else _PAIRS[packed[byte], within]
        )
        place, within = place + 1, within + 1
        if within == per_byte:
            byte, within = byte + 1, 0
    whole = (symbols.size - place) // per_byte
    if per_byte == 5:
        for _ in range(whole):
            row = packed[byte]
            symbols[place] = _TRITS[row, 0]
            symbols[place + 1] = _TRITS[row, 1]
            symbols[place + 2] = _TRITS[row, 2]
            symbols[place + 3] = _TRITS[row, 3]
            symbols[place + 4] = _TRITS[row, 4]
            place, byte = place + 5, byte + 1
    else:
        for _ in range(whole):
            row = packed[byte]
            symbols[place] = row & 3
            symbols[place + 1] = (row >> 2) & 3
            symbols[place + 2] = (row >> 4) & 3
            symbols[place + 3] = row >> 6
            place, byte = place + 4, byte + 1
    for digit in range(symbols.size - place):
        symbols[place + digit] = (
            _TRITS[packed[byte], digit] if per_byte == 5 else _PAIRS[packed[byte], digit]
        )


@compiled
def pack_symbols(  # type: ignore[no-untyped-def]
    symbols, per_byte, packed
):
    """Write the bytes of symbols; those that lack at the end of the last byte are 0."""
    base = 3 if per_byte == 5 else 4
    whole = symbols.size // per_byte
    if per_byte == 5:
        for byte in range(whole):
            at = 5 * byte
            packed[byte] = (
                symbols[at]
                + 3 * symbols[at + 1]
                + 9 * symbols[at + 2]
                + 27 * symbols[at + 3]
                + 81 * symbols[at + 4]
            )
    else:
        for byte in range(whole):
            at = 4 * byte
            packed[byte] = (
                symbols[at]
                | (symbols[at + 1] << 2)
                | (symbols[at + 2] << 4)
                | (symbols[at + 3] << 6)
            )
    if whole < packed.size:
        value, weight = 0, 1
        for at in range(per_byte * whole, symbols.size):
            value += weight * symbols[at]
            weight *= base
        packed[whole] = value


@compiled
def unpack_codes(  # type: ignore[no-untyped-def]
    packed, per_byte, start, codes
):
    """Write the codes of weights ``start`` onwards: int8; that of -0.0 is 0."""
    symbols = np.empty(_PIECE, dtype=np.uint8)
    for begin in range(0, codes.size, _PIECE):
        count = min(_PIECE, codes.size - begin)
        unpack_symbols(packed, per_byte, start + begin, symbols[:count])
        for at in range(count):
            codes[begin + at] = np.int8(symbols[at] & 1) - np.int8(symbols[at] >> 1)


@compiled
def pack_codes(  # type: ignore[no-untyped-def]
    codes, packed
):
    """Write the bytes of codes 0, +1 and -1, int8, five a byte; return how many are others."""
    symbols = np.empty(_PIECE, dtype=np.uint8)
    wrong = 0
    for begin in range(0, codes.size, _PIECE):
        count = min(_PIECE, codes.size - begin)
        for at in range(count):
            code = codes[begin + at]
            wrong += (code < -1) | (code > 1)
            symbols[at] = (code & 1) + ((code >> 1) & 1)
        pack_symbols(symbols[:count], 5, packed[begin // 5 : (begin + count + 4) // 5])
    return wrong


@compiled
def unpack_floats(  # type: ignore[no-untyped-def]
    packed, per_byte, scales, run, sign, start, out
):
    """Write weights ``start`` onwards, each 0 or its scale with the sign of its code.

    Args:
        packed: the codes of all weights.
        per_byte: 5 or 4.
        scales: bit patterns of positive numbers.
        run: successive weights that share one; 0 where each column has one.
        sign: the pattern of -0.0, an integer.
        start: the first weight.
        out: unsigned, of the type of ``scales``.
    """
    symbols = np.empty(_PIECE, dtype=np.uint8)
    columns, kind = scales.size, out.dtype.type  # of one type throughout, or it is not vectorized
    one, negative = kind(1), kind(sign)
    for begin in range(0, out.size, _PIECE):
        count = min(_PIECE, out.size - begin)
        unpack_symbols(packed, per_byte, start + begin, symbols[:count])
        at = 0
        while at < count:
            weight = start + begin + at
            if run:
                stop = min(count, at + run - weight % run)
                scale = scales[weight // run]
                for place in range(at, stop):
                    symbol = kind(symbols[place])
                    size = kind(scale * kind((symbol ^ (symbol >> one)) & one))
                    out[begin + place] = size | kind(kind(symbol >> one) * negative)
            else:
                first = weight % columns
                stop = min(count, at + columns - first)
                for place in range(at, stop):
                    symbol = kind(symbols[place])
                    scale = scales[first + place - at]
                    size = kind(scale * kind((symbol ^ (symbol >> one)) & one))
                    out[begin + place] = size | kind(kind(symbol >> one) * negative)
            at = stop


@compiled
def pack_floats(  # type: ignore[no-untyped-def]
    bits, sign, signed_zeros, per_byte, packed
):
    """Write the bytes of weights, bit patterns whose sizes are known to be 0 or a scale.

    Args:
        bits: unsigned.
        sign: the pattern of -0.0, an integer.
        signed_zeros: 1 keeps -0.0, which needs ``per_byte`` 4; 0 makes it 0.
        per_byte: 5 or 4.
        packed: where the bytes go.
    """
    symbols = np.empty(_PIECE, dtype=np.uint8)
    kind = bits.dtype.type
    least, mask = kind(sign), kind(sign - 1)
    for begin in range(0, bits.size, _PIECE):
        count = min(_PIECE, bits.size - begin)
        for at in range(count):
            value = bits[begin + at]
            negative, survives = np.uint8(value >= least), np.uint8((value & mask) != 0)
            symbols[at] = survives << negative
        if signed_zeros:
            for at in range(count):
                if bits[begin + at] == least:
                    symbols[at] = 3
        first = begin // per_byte
        pack_symbols(symbols[:count], per_byte, packed[first : first + -(-count // per_byte)])


@compiled
def unpack_planes(  # type: ignore[no-untyped-def]
    packed, size, start, out
):
    """Write bytes ``start`` onwards of transformers' layout, four planes of ``size`` bit pairs."""
    symbols = np.empty(_PIECE, dtype=np.uint8)
    for begin in range(0, out.size, _PIECE):
        count = min(_PIECE, out.size - begin)
        for plane in range(4):
            unpack_symbols(packed, 5, plane * size + start + begin, symbols[:count])
            for at in range(count):
                # Symbols 0, 1, 2 are codes 0, +1, -1, and stand there as 1, 2, 0.
                pair = (symbols[at] + 1) % 3
                if plane == 0:
                    out[begin + at] = pair
                else:
                    out[begin + at] |= pair << (2 * plane)


@compiled
def pack_planes(  # type: ignore[no-untyped-def]
    stored, start, packed, count
):
    """Write the bytes of weights ``start`` onwards, of ``stored``: all bytes of four planes.

    ``start`` is a multiple of 5. Returns how many of the ``count`` bit pairs are no code.
    """
    symbols = np.empty(_PIECE, dtype=np.uint8)
    wrong, size = 0, stored.size
    for begin in range(0, count, _PIECE):
        length = min(_PIECE, count - begin)
        at = 0
        while at < length:
            plane, place = (start + begin + at) // size, (start + begin + at) % size
            stop = min(length, at + size - place)
            shift = 2 * plane
            for step in range(stop - at):
                pair = (stored[place + step] >> shift) & 3
                wrong += pair == 3
                symbols[at + step] = (pair + 2) % 3
            at = stop
        pack_symbols(symbols[:length], 5, packed[begin // 5 : (begin + length + 4) // 5])
    return wrong


@compiled
def _block_symbols(block, ternary, symbols):  # type: ignore[no-untyped-def]
    """Write the symbols of one block of TQ1_0 (``ternary``) or TQ2_0; return how many are wrong.

    A bit pair of 3 is. Bytes of TQ1_0 that no writer makes are seen by encoding again.
    """
    wrong = 0
    if ternary:
        for byte in range(52):
            if byte < 32:
                first, step, digits = byte, 32, 5
            elif byte < 48:
                first, step, digits = 160 + byte - 32, 16, 5
            else:
                first, step, digits = 240 + byte - 48, 4, 4
            rest = np.int64(block[byte])
            for digit in range(digits):
                symbols[first + digit * step] = ((rest * 3) // 256 + 2) % 3
                rest = (rest * 3) % 256
    else:
        for byte in range(64):
            first = 128 * (byte // 32) + byte % 32
            for digit in range(4):
                pair = (block[byte] >> (2 * digit)) & 3
                wrong += pair == 3
                symbols[first + 32 * digit] = (pair + 2) % 3
    return wrong


@compiled
def _fill_block(symbols, ternary, block):  # type: ignore[no-untyped-def]
    """Write the bytes of one block of TQ1_0 (``ternary``) or TQ2_0, but for its scale."""
    if ternary:
        for byte in range(52):
            if byte < 32:
                first, step, digits = byte, 32, 5
            elif byte < 48:
                first, step, digits = 160 + byte - 32, 16, 5
            else:
                first, step, digits = 240 + byte - 48, 4, 4
            value = np.int64(0)
            for digit in range(5):
                value *= 3
                if digit < digits:
                    value += (np.int64(symbols[first + digit * step]) + 1) % 3
            block[byte] = (value * 256 + 242) // 243
    else:
        for byte in range(64):
            first = 128 * (byte // 32) + byte % 32
            value = np.int64(0)
            for digit in range(4):
                value |= ((np.int64(symbols[first + 32 * digit]) + 1) % 3) << (2 * digit)
            block[byte] = value


@compiled
def unpack_blocks(  # type: ignore[no-untyped-def]
    packed, ternary, scales, start, blocks
):
    """Write the blocks ``start`` onwards of TQ1_0 (``ternary``) or TQ2_0.

    ``scales`` are uint16, the patterns of float16; ``blocks`` uint8, of 54 or 66 columns.
    """
    symbols = np.empty(BLOCK, dtype=np.uint8)
    size = blocks.shape[1] - 2
    for at in range(len(blocks)):
        unpack_symbols(packed, 5, BLOCK * (start + at), symbols)
        _fill_block(symbols, ternary, blocks[at])
        blocks[at, size] = scales[start + at] & 255
        blocks[at, size + 1] = scales[start + at] >> 8


@compiled
def pack_blocks(  # type: ignore[no-untyped-def]
    blocks, ternary, scales, packed
):
    """Write the bytes and scales of blocks, five of them at a time; return how many differ.

    A block differs if its codes do not give its own bytes back.
    """
    symbols = np.empty(5 * BLOCK, dtype=np.uint8)
    again = np.empty(blocks.shape[1], dtype=np.uint8)
    wrong, size = 0, blocks.shape[1] - 2
    for begin in range(0, len(blocks), 5):
        count = min(5, len(blocks) - begin)
        for at in range(count):
            block = blocks[begin + at]
            part = symbols[at * BLOCK : (at + 1) * BLOCK]
            bad = _block_symbols(block, ternary, part)
            _fill_block(part, ternary, again)
            for byte in range(size):
                bad += again[byte] != block[byte]
            wrong += bad != 0
            scales[begin + at] = block[size] | (np.uint16(block[size + 1]) << 8)
        first = begin * BLOCK // 5
        last = first + (count * BLOCK + 4) // 5
        pack_symbols(symbols[: count * BLOCK], 5, packed[first:last])
    return wrong


def tail_symbols(packed: NDArray[np.uint8], per_byte: int, count: int) -> Any:
    """Return the symbols of the last byte after those of ``count`` weights: uint8, flat."""
    used = count - per_byte * (len(packed) - 1)
    table = _TRITS if per_byte == 5 else _PAIRS
    return table[packed[-1], used:]
