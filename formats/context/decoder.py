"""The decoder of the `context` coder: any tensor of a file, one piece of work per chunk.

A chunk has a coder state of its own, so chunks decode in parallel. Everything about a piece of two
thousand active weights is done together: draw the magnitudes, score them, list those that are not
certainly pruned, and walk that list once. Weights that are certain (nine of ten at a keep ratio of
a tenth) cost no branch that a processor could guess wrongly.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.formats.coder import Payload, Task
from pabzip.formats.context.geometry import PIECE, ActivePlan, level, next_piece
from pabzip.formats.context.model import (
    BUCKET_OF,
    COUNT,
    EDGES,
    REACH,
    SIGNS_CODED,
    SIGNS_PLAIN,
    ChunkSpan,
    Description,
    Predictor,
)
from pabzip.formats.context.range_coder import decode_bit, start_decoding
from pabzip.formats.context.side_information import read_descriptions
from pabzip.formats.seeded import SeededEntry
from pabzip.seeds import InitSpec
from pabzip.seeds.compiled import compiled
from pabzip.seeds.kernels import Generator, picked_magnitudes

FINE, WRONG_COUNT, WRONG_LENGTH, WRONG_PADDING = range(4)
"""What decoding a chunk can report."""

PROBLEMS = {
    WRONG_COUNT: "expected as many survivors as the side stream says, found another number",
    WRONG_LENGTH: "expected every coded byte of a chunk to be needed, found some left over",
    WRONG_PADDING: "expected zero padding after the last sign, found a bit set",
}

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
    generator: Generator,
    plan: ActivePlan,
    model: Predictor,
    data: NDArray[np.uint8],
    chunk: ChunkSpan,
    codes: NDArray[np.int8],
    weights: NDArray[np.float32],
) -> int:
    """Decode the active rows of a chunk into codes, weights, or both.

    ``codes`` and ``weights`` are flat arrays of the whole tensor, all zeros where nothing is
    written, or empty when they are not wanted. Codes above 1 mark places that the seed freezes:
    they have no bits, and stay. Returns one of `FINE`, `WRONG_COUNT`,
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
            picked_magnitudes(generator, element[:count], words, magnitudes)
        if model.scored:
            for i in range(count):
                scores[i] = level(magnitudes[i]) + offsets[i]
        for j in range(_candidates(scores, count, uncertain_from, candidates)):
            i = candidates[j]
            if want_codes and codes[element[i]] > 1:
                continue
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
                weight = np.float32(magnitudes[i]) * generator.factor
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


class ContextDecoder:
    """`pabzip.formats.coder.Decoder` of the tensors that this coder holds in one file.

    Arguments as for `pabzip.formats.coder.Coder.decoder`.
    """

    def __init__(self, seed: int, entries: Sequence[SeededEntry], side: bytes):
        self._seed = seed
        names = (entry.name for entry in entries)
        self.descriptions: dict[str, Description] = dict(
            zip(names, read_descriptions(side, entries), strict=True)
        )

    def codes(self, entry: SeededEntry, payload: Payload, out: NDArray[np.int8]) -> list[Task]:
        """Return the work that writes codes to ``out``, one piece per chunk."""
        no_weights = np.zeros(0, dtype=np.float32)
        return chunk_tasks(
            self.descriptions[entry.name], payload, self._seed, entry.spec, out, no_weights
        )

    def weights(self, entry: SeededEntry, payload: Payload, out: NDArray[np.float32]) -> list[Task]:
        """Return the work that writes weights to ``out``, one piece per chunk."""
        no_codes = np.zeros(0, dtype=np.int8)
        return chunk_tasks(
            self.descriptions[entry.name], payload, self._seed, entry.spec, no_codes, out
        )


def chunk_tasks(
    description: Description,
    payload: Payload,
    seed: int,
    spec: InitSpec,
    codes: NDArray[np.int8],
    weights: NDArray[np.float32],
) -> list[Task]:
    """Return the work that decodes one tensor, one piece per chunk.

    It is written to ``codes`` and ``weights``: flat, all zeros, empty where it is not wanted. A
    payload whose length is not what the side stream says raises `FormatError` at once, and a chunk
    that does not decode in its piece of work.
    """
    plan = ActivePlan.of(description.active)
    model = description.predictor(plan)
    data = np.frombuffer(payload, dtype=np.uint8)
    generator = Generator.of(seed, spec)

    def decode(chunk: ChunkSpan) -> None:
        status = decode_chunk(generator, plan, model, data, chunk, codes, weights)
        if status != FINE:
            raise FormatError("codes", PROBLEMS[status])

    return [partial(decode, chunk) for chunk in description.spans(len(payload))]
