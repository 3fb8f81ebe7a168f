"""Triton kernels that turn the bytes of context-coded tensors into weights.

Three launches serve all tensors of a file:

1. `predict_kernel`, a piece of `PIECE` live weights a program: draws magnitudes, scores them, and
   sorts the weights into pruned, surviving and uncertain. Those that need coded bits go to a
   compact list, in order.
2. `decode_kernel` of `pabzip.runtime.triton_range_decoder`, a chunk a program: range decoding is
   sequential, so it runs over the lists alone, and certain weights cost it nothing.
3. `write_kernel`, a piece a program: numbers the survivors, finds their signs, draws the
   magnitudes again (cheaper than the memory to keep them) and writes weights.

`pabzip.formats.context.chunk_reader.decode_chunk` is the definition that they follow to the bit.
What a damaged file holds never leads them outside the tables: plain signs are read for as many
survivors as the tables have room for, and all else is bounded by the counts of live weights.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pabzip.runtime.triton_constants import (
    FIELD_BEGIN,
    FIELD_CHANCES,
    FIELD_COUNT,
    FIELD_END,
    FIELD_FACTOR,
    FIELD_FIRST,
    FIELD_FIRST_PIECE,
    FIELD_KIND,
    FIELD_LAST,
    FIELD_OUT,
    FIELD_PLAIN,
    FIELD_SCORED,
    FIELD_SIGNS,
    FIELD_STREAM,
    FIELD_SURVIVORS,
    FIELDS,
    PIECE,
    REACH,
    ROW_FIELDS,
    SIGNS_CODED,
    SIGNS_PLAIN,
)
from pabzip.seeds.triton_kernels import (
    NORMAL,
    UNIFORM,
    leading_zeros,
    magnitudes,
    philox,
    rounded,
)


@triton.jit  # type: ignore[untyped-decorator]
def _live(
    chunk: tl.tensor, index: tl.tensor, inside: tl.tensor, rows: tl.tensor, places: tl.tensor
) -> tl.tensor:
    """Return of each live weight its row, its place in the list, and its element."""
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
    if kind == NORMAL:
        magnitude = magnitudes(word, wanted, table, NORMAL)
    elif kind == UNIFORM:
        magnitude = magnitudes(word, wanted, table, UNIFORM)
    else:
        magnitude = tl.zeros_like(word) + 1
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
    """Find the bucket of every live weight of a piece.

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
        row, place, element = _live(chunk, index, inside, rows, places)
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
        _row, _place, element = _live(chunk, index, kept, rows, places)
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
