"""Decode one chunk of a payload: the compiled code.

Everything about a piece of two thousand live weights is done together: draw the magnitudes, score
them, list those that are not certainly pruned, and walk that list once. Weights that are certain
(nine of ten at a keep ratio of a tenth) cost no branch that a processor could guess wrongly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pabzip.formats.context.buckets import BUCKET_OF, COUNT, EDGES, REACH
from pabzip.formats.context.levels import level
from pabzip.formats.context.live import PIECE, next_piece
from pabzip.formats.context.predictor import SIGNS_CODED, SIGNS_PLAIN
from pabzip.formats.context.range_coder import decode_bit, start_decoding
from pabzip.seeds.compiled import compiled
from pabzip.seeds.gather import picked_magnitudes

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
    rows: NDArray[np.int64],
    group: NDArray[np.int64],
    places: NDArray[np.int64],
    starts: NDArray[np.int64],
    width: int,
    begin: int,
    end: int,
    scored: bool,
    row_offsets: NDArray[np.int32],
    place_offsets: NDArray[np.int32],
    first: int,
    last: int,
    chances: NDArray[np.uint32],
    sign_mode: int,
    flip_chance: np.uint32,
    data: NDArray[np.uint8],
    coded_begin: int,
    coded_end: int,
    sign_end: int,
    survivors: int,
    codes: NDArray[np.int8],
    weights: NDArray[np.float32],
) -> int:
    """Decode the live rows ``begin`` to ``end`` into codes, weights, or both.

    ``codes`` and ``weights`` are flat arrays of the whole tensor, all zeros where nothing is
    written, or empty when they are not wanted. Returns one of `FINE`, `WRONG_COUNT`,
    `WRONG_LENGTH` and `WRONG_PADDING`; never reads outside ``data[coded_begin:sign_end]``.
    """
    element = np.empty(PIECE, dtype=np.int64)
    offsets = np.empty(PIECE, dtype=np.int32)
    words = np.empty(PIECE, dtype=np.uint32)
    magnitudes = np.empty(PIECE, dtype=np.uint32)
    scores = np.zeros(PIECE, dtype=np.int32)
    candidates = np.empty(PIECE + 1, dtype=np.int32)
    want_codes, want_weights = len(codes) > 0, len(weights) > 0
    draw = scored or want_weights
    # A weight of a lower score is pruned, and one of at least the second survives. Without scores
    # all weights are in bucket 0, which the first edge lets in.
    uncertain_from, certain_from = _lower_edge(first), _lower_edge(last)
    if not scored:
        uncertain_from, certain_from = -_FAR, _FAR if last > 0 else -_FAR

    code, span, position = start_decoding(data, coded_begin, coded_end)
    row, place, found = begin, 0, 0
    while True:
        count, row, place = next_piece(
            rows, group, places, starts, width, row_offsets, place_offsets,
            row, place, end, element, offsets,
        )  # fmt: skip
        if count == 0:
            break
        if draw:
            picked_magnitudes(key, stream, kind, table, element[:count], words, magnitudes)
        if scored:
            for i in range(count):
                scores[i] = level(magnitudes[i]) + offsets[i]
        for j in range(_candidates(scores, count, uncertain_from, candidates)):
            i = candidates[j]
            if scores[i] < certain_from:
                bucket = 0
                if scored:
                    bucket = int(BUCKET_OF[min(max(scores[i], -REACH - 1), REACH) + REACH + 1])
                code, span, position, kept = decode_bit(
                    code, span, position, data, coded_end, chances[bucket]
                )
                if kept == 0:
                    continue
            if found == survivors:
                return WRONG_COUNT
            flipped = 0
            if sign_mode == SIGNS_PLAIN:
                flipped = int(data[coded_end + (found >> 3)] >> (found & 7)) & 1
            elif sign_mode == SIGNS_CODED:
                code, span, position, flipped = decode_bit(
                    code, span, position, data, coded_end, flip_chance
                )
            found += 1
            if want_codes:
                codes[element[i]] = 1 - 2 * flipped
            if want_weights:
                weight = np.float32(magnitudes[i]) * factor
                negative = np.int64(words[i] >> np.uint32(31)) ^ flipped
                weights[element[i]] = -weight if negative else weight
    if found != survivors:
        return WRONG_COUNT
    if position < coded_end or (coded_end > coded_begin and data[coded_end - 1] == 0):
        return WRONG_LENGTH
    rest = survivors & 7
    if sign_mode == SIGNS_PLAIN and rest and data[sign_end - 1] >> rest:
        return WRONG_PADDING
    return FINE
