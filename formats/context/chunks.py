"""The payload: chunks of whole live rows, each a range-coded stream and a run of plain sign bits.

A chunk stands alone: it has a coder state of its own, so chunks decode in parallel, and magnitudes
are drawn, predictions made and bits decoded for a piece of it at a time, without the tensor's
magnitudes ever being written out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.formats.coder import Payload, Task
from pabzip.formats.context.chunk_reader import (
    FINE,
    WRONG_COUNT,
    WRONG_LENGTH,
    WRONG_PADDING,
    decode_chunk,
)
from pabzip.formats.context.description import ChunkSpan, Description
from pabzip.formats.context.live import LivePlan
from pabzip.seeds import InitSpec
from pabzip.seeds.cpu import generator_arguments

PROBLEMS = {
    WRONG_COUNT: "expected as many survivors as the side stream says, found another number",
    WRONG_LENGTH: "expected every coded byte of a chunk to be needed, found some left over",
    WRONG_PADDING: "expected zero padding after the last sign, found a bit set",
}


def chunk_tasks(
    told: Description,
    payload: Payload,
    seed: int,
    spec: InitSpec,
    codes: NDArray[np.int8],
    weights: NDArray[np.float32],
) -> list[Task]:
    """Return the work that decodes one tensor, one piece a chunk.

    Args:
        told: what the side stream tells of the tensor.
        payload: its section.
        seed: the file's seed.
        spec: the tensor's init spec.
        codes: where codes go: int8, flat, all zeros; empty where they are not wanted.
        weights: where weights go: float32, likewise.

    Raises:
        FormatError: the payload's length is not what the side stream says; the work raises it
            where a chunk does not decode.
    """
    spans = told.spans(len(payload))
    plan = LivePlan.of(told.live)
    predictor = told.predictor(plan)
    data = np.frombuffer(payload, dtype=np.uint8)
    generator = (*generator_arguments(seed, spec), spec.factor)
    rows = (plan.rows, plan.group, plan.places, plan.starts, plan.width)
    model = (
        predictor.scored, predictor.row_offsets, predictor.place_offsets,
        predictor.first, predictor.last, predictor.chances,
        predictor.signs, np.uint32(predictor.flip_chance),
    )  # fmt: skip

    def task(span: ChunkSpan) -> Task:
        """Bind one chunk."""

        def run() -> None:
            status = decode_chunk(
                *generator, *rows, span.begin, span.end, *model,
                data, span.coded_begin, span.coded_end, span.sign_end, span.survivors,
                codes, weights,
            )  # fmt: skip
            if status != FINE:
                raise FormatError("codes", PROBLEMS[status])

        return run

    return [task(span) for span in spans]
