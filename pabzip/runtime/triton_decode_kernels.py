"""Triton kernels that decode the context coder, for all tensors of a file together.

Three launches serve all tensors of a file:

1. `predict_kernel`, a piece of `PIECE` active weights a program: draws magnitudes, scores them, and
   sorts the weights into pruned, surviving and uncertain. Those that need coded bits go to a
   compact list, in order.
2. `decode_kernel`, a chunk a program: range decoding is sequential, so it runs over the lists
   alone, and certain weights cost it nothing.
3. `write_kernel`, a piece a program: numbers the survivors, finds their signs, draws the
   magnitudes again (cheaper than the memory to keep them) and writes weights.

`pabzip.formats.context.decoder.decode_chunk` is the definition that they follow to the bit.
What a damaged file holds never leads them outside the tables: plain signs are read for as many
survivors as the tables have room for, and all else is bounded by the counts of active weights.

A Triton kernel may read no globals but ``tl.constexpr`` values. The fields are those of
`pabzip.runtime.decode_tables.CHUNK_FIELDS`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pabzip.formats.context import decoder, model
from pabzip.runtime import decode_tables
from pabzip.runtime.decode_tables import CHUNK_FIELDS
from pabzip.seeds.cuda import (
    KIND_COUNT,
    leading_zeros,
    magnitudes,
    philox,
    rounded,
)

PIECE = tl.constexpr(decode_tables.PIECE)
REACH = tl.constexpr(model.REACH)
ROW_FIELDS = tl.constexpr(decode_tables.ROW_FIELDS)
FIELDS = tl.constexpr(len(CHUNK_FIELDS))
FIELD_COUNT = tl.constexpr(CHUNK_FIELDS.index("count"))
FIELD_BEGIN = tl.constexpr(CHUNK_FIELDS.index("begin"))
FIELD_END = tl.constexpr(CHUNK_FIELDS.index("end"))
FIELD_FIRST_PIECE = tl.constexpr(CHUNK_FIELDS.index("piece"))
FIELD_STREAM = tl.constexpr(CHUNK_FIELDS.index("stream"))
FIELD_KIND = tl.constexpr(CHUNK_FIELDS.index("kind"))
FIELD_FACTOR = tl.constexpr(CHUNK_FIELDS.index("factor"))
FIELD_SCORED = tl.constexpr(CHUNK_FIELDS.index("scored"))
FIELD_FIRST = tl.constexpr(CHUNK_FIELDS.index("first"))
FIELD_LAST = tl.constexpr(CHUNK_FIELDS.index("last"))
FIELD_CHANCES = tl.constexpr(CHUNK_FIELDS.index("chances"))
FIELD_SIGNS = tl.constexpr(CHUNK_FIELDS.index("signs"))
FIELD_FLIP_CHANCE = tl.constexpr(CHUNK_FIELDS.index("flip_chance"))
FIELD_CODED = tl.constexpr(CHUNK_FIELDS.index("coded"))
FIELD_PLAIN = tl.constexpr(CHUNK_FIELDS.index("plain"))
FIELD_SURVIVORS = tl.constexpr(CHUNK_FIELDS.index("survivors"))
FIELD_OUT = tl.constexpr(CHUNK_FIELDS.index("out"))

SIGNS_PLAIN = tl.constexpr(model.SIGNS_PLAIN)
SIGNS_CODED = tl.constexpr(model.SIGNS_CODED)
FINE = tl.constexpr(decoder.FINE)
WRONG_COUNT = tl.constexpr(decoder.WRONG_COUNT)
WRONG_LENGTH = tl.constexpr(decoder.WRONG_LENGTH)
WRONG_PADDING = tl.constexpr(decoder.WRONG_PADDING)


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


@triton.jit  # type: ignore[untyped-decorator]
def _active(
    chunk: tl.tensor, index: tl.tensor, inside: tl.tensor, rows: tl.tensor, places: tl.tensor
) -> tl.tensor:
    """Return of each active weight its row, its place in the list, and its element."""
    begin = tl.load(chunk + FIELD_BEGIN)
    end = tl.load(chunk + FIELD_END)
    # The last row that starts at or before the weight, by halves.
    wanted = tl.load(rows + begin * ROW_FIELDS + 1) + index
    row = tl.zeros_like(index) + begin
    above = tl.zeros_like(index) + end
    width = end - begin
    while width > 1:
        middle = (row + above) >> 1
        reached = tl.load(rows + middle * ROW_FIELDS + 1) <= wanted
        row = tl.where(reached, middle, row)
        above = tl.where(reached, above, middle)
        width = (width + 1) >> 1
    fields = rows + row * ROW_FIELDS
    place = tl.load(fields + 2) + wanted - tl.load(fields + 1)
    element = tl.load(fields) + tl.load(places + place, mask=inside, other=0)
    return row, place, element


@triton.jit  # type: ignore[untyped-decorator]
def _draw(
    chunk: tl.tensor,
    element: tl.tensor,
    wanted: tl.tensor,
    table: tl.tensor,
    key_0: tl.tensor,
    key_1: tl.tensor,
) -> tl.tensor:
    """Return the word and the magnitude of each element."""
    stream = tl.load(chunk + FIELD_STREAM).to(tl.uint32)
    w0, w1, w2, w3 = philox(element >> 2, stream, key_0.to(tl.uint32), key_1.to(tl.uint32))
    slot = element & 3
    word = tl.where(slot < 2, tl.where(slot == 0, w0, w1), tl.where(slot == 2, w2, w3))
    kind = tl.load(chunk + FIELD_KIND)
    magnitude = tl.zeros_like(word)
    for KIND in tl.static_range(KIND_COUNT):  # noqa: N806
        if kind == KIND:
            magnitude = magnitudes(word, wanted, table, KIND)
    return word, magnitude


@triton.jit(do_not_specialize=["key_0", "key_1"])  # type: ignore[untyped-decorator]
def predict_kernel(
    chunks: tl.tensor,
    chunk_of: tl.tensor,
    rows: tl.tensor,
    places: tl.tensor,
    place_offsets: tl.tensor,
    chances: tl.tensor,
    table: tl.tensor,
    fractions: tl.tensor,
    bucket_of: tl.tensor,
    key_0: tl.tensor,
    key_1: tl.tensor,
    fates: tl.tensor,
    entries: tl.tensor,
    listed: tl.tensor,
    certain: tl.tensor,
) -> None:
    """Find the bucket of every active weight of a piece.

    Writes ``fates`` (1 for a certain survivor, 0 for all others so far), the ``entries`` to decode
    (place in the piece, and from bit 16 on the probability of survival, 0 where it is certain and
    only the sign is coded), how many are ``listed``, and how many survivors are ``certain``. Key
    words come as int32 with the bits of a uint32.
    """
    piece = tl.program_id(0).to(tl.int64)
    chunk = chunks + tl.load(chunk_of + piece).to(tl.int64) * FIELDS
    lane = tl.arange(0, PIECE)
    index = (piece - tl.load(chunk + FIELD_FIRST_PIECE)) * PIECE + lane
    count = tl.load(chunk + FIELD_COUNT)
    inside = index < count
    bucket = tl.zeros([PIECE], tl.int32)
    if tl.load(chunk + FIELD_SCORED) != 0:
        row, place, element = _active(chunk, index, inside, rows, places)
        _word, magnitude = _draw(chunk, element, inside, table, key_0, key_1)
        zeros = leading_zeros(magnitude)
        fraction = (((magnitude << zeros) >> 23) & 255).to(tl.int32)
        score = (31 - zeros.to(tl.int32)) * 256 + tl.load(fractions + fraction).to(tl.int32)
        score += tl.load(rows + row * ROW_FIELDS + 3).to(tl.int32)
        score += tl.load(place_offsets + place, mask=inside, other=0)
        score = tl.minimum(tl.maximum(score, -REACH - 1), REACH)
        bucket = tl.load(bucket_of + score + REACH + 1).to(tl.int32)
    last = tl.load(chunk + FIELD_LAST)
    survives = inside & (bucket >= last)
    uncertain = inside & (bucket < last) & (bucket >= tl.load(chunk + FIELD_FIRST))
    # A limit, not a condition: the interpreter does not combine one flag with many.
    signed = tl.where(tl.load(chunk + FIELD_SIGNS) == SIGNS_CODED, count, 0)
    chosen = uncertain | (survives & (index < signed))
    slot = tl.cumsum(chosen.to(tl.int32), axis=0) - 1
    chance = tl.load(chances + tl.load(chunk + FIELD_CHANCES) + bucket, mask=uncertain, other=0)
    entry = lane | (chance << 16)
    first = piece * PIECE
    tl.store(entries + first + slot, entry, mask=chosen)
    tl.store(fates + first + lane, survives.to(tl.uint8))
    tl.store(listed + piece, tl.sum(chosen.to(tl.int32), axis=0))
    tl.store(certain + piece, tl.sum(survives.to(tl.int32), axis=0))


@triton.jit(do_not_specialize=["key_0", "key_1"])  # type: ignore[untyped-decorator]
def write_kernel(
    data: tl.tensor,
    chunks: tl.tensor,
    chunk_of: tl.tensor,
    rows: tl.tensor,
    places: tl.tensor,
    table: tl.tensor,
    fates: tl.tensor,
    before: tl.tensor,
    key_0: tl.tensor,
    key_1: tl.tensor,
    DTYPE: tl.constexpr,  # noqa: N803
) -> None:
    """Write the surviving weights of a piece where its chunk says; all others stay as they are."""
    piece = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, PIECE)
    fate = tl.load(fates + piece * PIECE + lane).to(tl.int32)
    kept = fate != 0
    if tl.max(fate, axis=0) != 0:
        chunk = chunks + tl.load(chunk_of + piece).to(tl.int64) * FIELDS
        index = (piece - tl.load(chunk + FIELD_FIRST_PIECE)) * PIECE + lane
        _row, _place, element = _active(chunk, index, kept, rows, places)
        word, magnitude = _draw(chunk, element, kept, table, key_0, key_1)
        number = tl.load(before + piece) + tl.cumsum(kept.to(tl.int32), axis=0) - 1
        signs = tl.load(chunk + FIELD_SIGNS)
        signed = tl.where(signs == SIGNS_PLAIN, tl.load(chunk + FIELD_SURVIVORS), 0)
        byte = data + tl.load(chunk + FIELD_PLAIN) + (number >> 3)
        byte = tl.load(byte, mask=kept & (number < signed), other=0)
        flipped = (byte.to(tl.int32) >> (number & 7).to(tl.int32)) & 1
        negative = ((word >> 31).to(tl.int32) ^ flipped ^ (fate >> 1)) != 0
        factor = tl.load(chunk + FIELD_FACTOR).to(tl.int32).to(tl.float32, bitcast=True)
        weight = magnitude.to(tl.float32) * tl.where(negative, -factor, factor)
        out = tl.load(chunk + FIELD_OUT).to(tl.pointer_type(DTYPE))
        tl.store(out + element, rounded(weight, DTYPE), mask=kept)
