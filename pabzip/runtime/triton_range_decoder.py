"""The Triton kernel that range decoding runs in: one program a chunk, one bit after the other.

It is the second of three launches; `pabzip.runtime.triton_decode_kernels` tells of all.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pabzip.runtime.triton_constants import (
    FIELD_CODED,
    FIELD_COUNT,
    FIELD_FIRST_PIECE,
    FIELD_FLIP_CHANCE,
    FIELD_PLAIN,
    FIELD_SIGNS,
    FIELD_SURVIVORS,
    FIELDS,
    FINE,
    PIECE,
    SIGNS_CODED,
    SIGNS_PLAIN,
    WRONG_COUNT,
    WRONG_LENGTH,
    WRONG_PADDING,
)


@triton.jit  # type: ignore[untyped-decorator]
def _next_bytes(data: tl.tensor, position: tl.tensor, end: tl.tensor) -> tl.tensor:
    """Return the next two bytes; past the end are zeros."""
    high = tl.load(data + position, mask=position < end, other=0)
    low = tl.load(data + position + 1, mask=position + 1 < end, other=0)
    return high.to(tl.uint32), low.to(tl.uint32)


@triton.jit  # type: ignore[untyped-decorator]
def _decode_bit(
    code: tl.tensor,
    span: tl.tensor,
    position: tl.tensor,
    high: tl.tensor,
    low: tl.tensor,
    data: tl.tensor,
    end: tl.tensor,
    chance: tl.tensor,
) -> tl.tensor:
    """Decode one bit, as `pabzip.formats.context.range_coder.decode_bit`, without branches.

    ``high`` and ``low`` are the bytes at ``position``: loaded a bit early, so that the loads run
    beside the arithmetic.
    """
    bound = (span >> 16) * chance
    bit = code < bound
    code = tl.where(bit, code, code - bound)
    span = tl.where(bit, bound, span - bound)
    # A span is at least 2**8, so two bytes are the most that one bit asks for.
    count = (span < (1 << 24)).to(tl.uint32) + (span < (1 << 16)).to(tl.uint32)
    code = (code << (count * 8)) | (((high << 8) | low) >> (16 - count * 8))
    span = span << (count * 8)
    position += count.to(tl.int64)
    high, low = _next_bytes(data, position, end)
    return code, span, position, high, low, bit


@triton.jit  # type: ignore[untyped-decorator]
def decode_kernel(
    data: tl.tensor,
    chunks: tl.tensor,
    entries: tl.tensor,
    listed: tl.tensor,
    certain: tl.tensor,
    fates: tl.tensor,
    before: tl.tensor,
    statuses: tl.tensor,
) -> None:
    """Decode the bits of a chunk.

    Completes ``fates`` (0 pruned, 1 sign kept, 3 flipped; plain signs are not looked at), and
    writes the survivors of the chunk ``before`` each piece and one of ``statuses``: `FINE`,
    `WRONG_COUNT`, `WRONG_LENGTH` or `WRONG_PADDING`.
    """
    number = tl.program_id(0).to(tl.int64)
    chunk = chunks + number * FIELDS
    begin = tl.load(chunk + FIELD_CODED)
    end = tl.load(chunk + FIELD_PLAIN)
    signs = tl.load(chunk + FIELD_SIGNS)
    flip_chance = tl.load(chunk + FIELD_FLIP_CHANCE).to(tl.uint32)
    piece = tl.load(chunk + FIELD_FIRST_PIECE)
    last_piece = piece + (tl.load(chunk + FIELD_COUNT) + PIECE - 1) // PIECE

    high, low = _next_bytes(data, begin, end)
    code = (high << 24) | (low << 16)
    high, low = _next_bytes(data, begin + 2, end)
    code = code | (high << 8) | low
    span = tl.full([], 0xFFFFFFFF, tl.uint32)
    position = begin + 4
    high, low = _next_bytes(data, position, end)
    found = tl.full([], 0, tl.int64)
    while piece < last_piece:
        tl.store(before + piece, found)
        found += tl.load(certain + piece).to(tl.int64)
        first = piece * PIECE
        at = first
        stop = first + tl.load(listed + piece).to(tl.int64)
        next_entry = tl.load(entries + at, mask=at < stop, other=0).to(tl.uint32)
        while at < stop:
            entry = next_entry
            at += 1
            # Loaded a step early, like the bytes.
            next_entry = tl.load(entries + at, mask=at < stop, other=0).to(tl.uint32)
            chance = entry >> 16
            fate = tl.full([], 1, tl.int32)
            if chance != 0:
                code, span, position, high, low, bit = _decode_bit(
                    code, span, position, high, low, data, end, chance
                )
                fate = bit.to(tl.int32)
                found += bit.to(tl.int64)
            if (fate != 0) & (signs == SIGNS_CODED):
                code, span, position, high, low, bit = _decode_bit(
                    code, span, position, high, low, data, end, flip_chance
                )
                fate += 2 * bit.to(tl.int32)
            tl.store(fates + first + (entry & (PIECE - 1)), fate.to(tl.uint8))
        piece += 1

    survivors = tl.load(chunk + FIELD_SURVIVORS)
    final = tl.load(data + end - 1, mask=end > begin, other=1)
    padded = (signs == SIGNS_PLAIN) & ((survivors & 7) != 0)
    rest = tl.load(data + end + (survivors >> 3), mask=padded, other=0).to(tl.int32)
    rest = rest >> (survivors & 7).to(tl.int32)
    status = tl.where(rest != 0, WRONG_PADDING, FINE)
    status = tl.where((position < end) | (final == 0), WRONG_LENGTH, status)
    status = tl.where(found != survivors, WRONG_COUNT, status)
    tl.store(statuses + number, status)
