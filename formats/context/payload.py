"""The payload of a tensor: chunks of mask bits and signs, encoded and decoded.

A chunk has a coder state of its own, so chunks decode in parallel. Everything about a piece of two
thousand active weights is done together: draw the magnitudes, score them, list those that are not
certainly pruned, and walk that list once. Weights that are certain (nine of ten at a keep ratio of
a tenth) cost no branch that a processor could guess wrongly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pabzip.formats.context.geometry import PIECE, ActivePlan, level, next_piece
from pabzip.formats.context.model import (
    BUCKET_OF,
    COUNT,
    EDGES,
    REACH,
    SIGNS_CODED,
    SIGNS_PLAIN,
    ChunkSpan,
    Predictor,
    sign_bytes,
)
from pabzip.formats.context.range_coder import (
    FLUSH_BYTES,
    decode_bit,
    encode_bit,
    finish,
    start_decoding,
)
from pabzip.seeds.compiled import compiled
from pabzip.seeds.kernels import picked_magnitudes

FINE, WRONG_COUNT, WRONG_LENGTH, WRONG_PADDING = range(4)
"""What decoding a chunk can report."""

_FAR = 1 << 30  # beyond every score


@compiled
def _lower_edge(bucket: int) -> int:
    """Return the least score of a bucket; the first reaches down, and past the last is nothing."""
    if bucket <= 0:
        return -_FAR
    return int(EDGES[bucket - 1]) if bucket < COUNT else _FAR


@compiled
def _candidates(
    scores: NDArray[np.int32], count: int, least: int, candidates: NDArray[np.int32]
) -> int:
    """List the weights whose score is at least ``least``, without a branch; return how many."""
    found = 0
    for index in range(count):
        candidates[found] = index
        found += scores[index] >= least
    return found


@compiled
def decode_chunk(
    key: tuple[np.uint32, np.uint32],
    stream: np.uint32,
    kind: int,
    table: NDArray[np.uint32],
    factor: np.float32,
    plan: ActivePlan,
    model: Predictor,
    data: NDArray[np.uint8],
    chunk: ChunkSpan,
    codes: NDArray[np.int8],
    weights: NDArray[np.float32],
) -> int:
    """Decode the active rows of a chunk into codes, weights, or both.

    ``codes`` and ``weights`` are flat arrays of the whole tensor, all zeros where nothing is
    written, or empty when they are not wanted. Returns one of `FINE`, `WRONG_COUNT`,
    `WRONG_LENGTH` and `WRONG_PADDING`; never reads outside the chunk's bytes.
    """
    element = np.empty(PIECE, dtype=np.int64)
    offsets = np.empty(PIECE, dtype=np.int32)
    words = np.empty(PIECE, dtype=np.uint32)
    magnitudes = np.empty(PIECE, dtype=np.uint32)
    scores = np.zeros(PIECE, dtype=np.int32)
    candidates = np.empty(PIECE + 1, dtype=np.int32)
    want_codes, want_weights = len(codes) > 0, len(weights) > 0
    draw = model.scored or want_weights
    coded_end = chunk.coded_end
    # A weight of a lower score is pruned, and one of at least the second survives. Without scores
    # all weights are in bucket 0, which the first edge lets in.
    uncertain_from, certain_from = _lower_edge(model.first), _lower_edge(model.last)
    if not model.scored:
        uncertain_from, certain_from = -_FAR, _FAR if model.last > 0 else -_FAR

    code, span, position = start_decoding(data, chunk.coded_begin, coded_end)
    row, place, found = chunk.begin, 0, 0
    while True:
        count, row, place = next_piece(
            plan, model.row_offsets, model.place_offsets, row, place, chunk.end, element, offsets
        )
        if count == 0:
            break
        if draw:
            picked_magnitudes(key, stream, kind, table, element[:count], words, magnitudes)
        if model.scored:
            for i in range(count):
                scores[i] = level(magnitudes[i]) + offsets[i]
        for j in range(_candidates(scores, count, uncertain_from, candidates)):
            i = candidates[j]
            if scores[i] < certain_from:
                bucket = 0
                if model.scored:
                    bucket = int(BUCKET_OF[min(max(scores[i], -REACH - 1), REACH) + REACH + 1])
                code, span, position, kept = decode_bit(
                    code, span, position, data, coded_end, model.chances[bucket]
                )
                if kept == 0:
                    continue
            if found == chunk.survivors:
                return WRONG_COUNT
            flipped = 0
            if model.signs == SIGNS_PLAIN:
                flipped = int(data[coded_end + (found >> 3)] >> (found & 7)) & 1
            elif model.signs == SIGNS_CODED:
                code, span, position, flipped = decode_bit(
                    code, span, position, data, coded_end, model.flip_chance
                )
            found += 1
            if want_codes:
                codes[element[i]] = 1 - 2 * flipped
            if want_weights:
                weight = np.float32(magnitudes[i]) * factor
                negative = np.int64(words[i] >> np.uint32(31)) ^ flipped
                weights[element[i]] = -weight if negative else weight
    if found != chunk.survivors:
        return WRONG_COUNT
    if position < coded_end or (coded_end > chunk.coded_begin and data[coded_end - 1] == 0):
        return WRONG_LENGTH
    rest = chunk.survivors & 7
    if model.signs == SIGNS_PLAIN and rest and data[chunk.sign_end - 1] >> rest:
        return WRONG_PADDING
    return FINE


MOST_BYTES_A_WEIGHT = 4
"""Of range-coded bits: two at most, each of probability 2**-16 or more."""


def encode_chunk(
    plan: ActivePlan,
    predictor: Predictor,
    levels: NDArray[np.int16],
    codes: NDArray[np.int8],
    begin: int,
    end: int,
) -> tuple[bytes, bytes, int]:
    """Encode the active rows ``begin`` to ``end``.

    Args:
        plan: the tensor's active weights.
        predictor: of their mask; every survivor must be in bucket ``first`` or above, every pruned
            weight below ``last``.
        levels: int16, of all active weights; empty when the predictor is not scored.
        codes: int8, of all active weights.
        begin: first active row of the chunk.
        end: one past its last.

    Returns:
        The range-coded bytes, the sign bytes, and the number of survivors.
    """
    start, stop = (int(plan.ends[row - 1]) if row else 0 for row in (begin, end))
    coded = np.zeros(4 * (stop - start) + 16 + FLUSH_BYTES, dtype=np.uint8)
    signs = np.zeros((stop - start + 7) // 8, dtype=np.uint8)
    length, survivors = _encode(
        plan, predictor, levels[start:stop], codes[start:stop], begin, end, coded, signs
    )
    used = sign_bytes(predictor.signs, survivors)
    return coded[:length].tobytes(), signs[:used].tobytes(), int(survivors)


@compiled
def _encode(
    plan: ActivePlan,
    model: Predictor,
    levels: NDArray[np.int16],
    codes: NDArray[np.int8],
    begin: int,
    end: int,
    coded: NDArray[np.uint8],
    signs: NDArray[np.uint8],
) -> tuple[int, int]:
    """Encode a chunk; return the coded length and the number of survivors."""
    low, span, position = np.uint64(0), np.uint64(0xFFFFFFFF), 0
    done, survivors, bucket = 0, 0, 0
    for row in range(begin, end):
        group = plan.group[row]
        for place in range(plan.starts[group], plan.starts[group + 1]):
            code = codes[done]
            if model.scored:
                score = levels[done] + model.row_offsets[row] + model.place_offsets[place]
                score = min(max(score, -REACH - 1), REACH)
                bucket = int(BUCKET_OF[score + REACH + 1])
            done += 1
            if model.first <= bucket < model.last:
                kept, chance = 1 if code else 0, model.chances[bucket]
                low, span, position = encode_bit(low, span, position, coded, kept, chance)
            if code == 0:
                continue
            flipped = 1 if code < 0 else 0
            if model.signs == SIGNS_PLAIN:
                signs[survivors >> 3] |= np.uint8(flipped << (survivors & 7))
            elif model.signs == SIGNS_CODED:
                chance = model.flip_chance
                low, span, position = encode_bit(low, span, position, coded, flipped, chance)
            survivors += 1
    return finish(low, span, position, coded, 0), survivors


PROBLEMS = {
    WRONG_COUNT: "expected as many survivors as the side stream says, found another number",
    WRONG_LENGTH: "expected every coded byte of a chunk to be needed, found some left over",
    WRONG_PADDING: "expected zero padding after the last sign, found a bit set",
}
