"""Write a chunk of the payload: what `pabzip.formats.context.chunks` reads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pabzip.formats.context.buckets import BUCKET_OF, REACH
from pabzip.formats.context.live import LivePlan
from pabzip.formats.context.predictor import SIGNS_CODED, SIGNS_PLAIN, Predictor, sign_bytes
from pabzip.formats.context.range_coder import FLUSH_BYTES, encode_bit, finish
from pabzip.seeds.compiled import compiled

MOST_BYTES_A_WEIGHT = 4
"""Of range-coded bits: two at most, each of probability 2**-16 or more."""


def encode_chunk(
    plan: LivePlan,
    predictor: Predictor,
    levels: NDArray[np.int16],
    codes: NDArray[np.int8],
    begin: int,
    end: int,
) -> tuple[bytes, bytes, int]:
    """Encode the live rows ``begin`` to ``end``.

    Args:
        plan: the tensor's live weights.
        predictor: of their mask; every survivor must be in bucket ``first`` or above, every pruned
            weight below ``last``.
        levels: int16, of all live weights; empty when the predictor is not scored.
        codes: int8, of all live weights.
        begin: first live row of the chunk.
        end: one past its last.

    Returns:
        The range-coded bytes, the sign bytes, and the number of survivors.
    """
    start, stop = plan.elements_before(begin), plan.elements_before(end)
    coded = np.zeros(4 * (stop - start) + 16 + FLUSH_BYTES, dtype=np.uint8)
    signs = np.zeros((stop - start + 7) // 8, dtype=np.uint8)
    length, survivors = _encode(
        plan.group, plan.starts, begin, end, levels[start:stop], codes[start:stop],
        predictor.scored, predictor.row_offsets, predictor.place_offsets,
        predictor.first, predictor.last, predictor.chances,
        predictor.signs, np.uint32(predictor.flip_chance), coded, signs,
    )  # fmt: skip
    used = sign_bytes(predictor.signs, survivors)
    return coded[:length].tobytes(), signs[:used].tobytes(), int(survivors)


@compiled
def _encode(
    group: NDArray[np.int64],
    starts: NDArray[np.int64],
    begin: int,
    end: int,
    levels: NDArray[np.int16],
    codes: NDArray[np.int8],
    scored: bool,
    row_offsets: NDArray[np.int32],
    place_offsets: NDArray[np.int32],
    first: int,
    last: int,
    chances: NDArray[np.uint32],
    sign_mode: int,
    flip_chance: np.uint32,
    coded: NDArray[np.uint8],
    signs: NDArray[np.uint8],
) -> tuple[int, int]:
    """Encode a chunk; return the coded length and the number of survivors."""
    low, span, position = np.uint64(0), np.uint64(0xFFFFFFFF), 0
    done, survivors, bucket = 0, 0, 0
    for row in range(begin, end):
        for place in range(starts[group[row]], starts[group[row] + 1]):
            code = codes[done]
            if scored:
                score = levels[done] + row_offsets[row] + place_offsets[place]
                score = min(max(score, -REACH - 1), REACH)
                bucket = int(BUCKET_OF[score + REACH + 1])
            done += 1
            if first <= bucket < last:
                kept = 1 if code else 0
                low, span, position = encode_bit(low, span, position, coded, kept, chances[bucket])
            if code == 0:
                continue
            flipped = 1 if code < 0 else 0
            if sign_mode == SIGNS_PLAIN:
                signs[survivors >> 3] |= np.uint8(flipped << (survivors & 7))
            elif sign_mode == SIGNS_CODED:
                low, span, position = encode_bit(low, span, position, coded, flipped, flip_chance)
            survivors += 1
    return finish(low, span, position, coded, 0), survivors
