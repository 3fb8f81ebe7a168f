"""The decoder of the `context` coder: any tensor of a file, one piece of work a chunk."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.formats.coder import Payload, Task
from pabzip.formats.context.geometry import ActivePlan
from pabzip.formats.context.model import ChunkSpan, Description
from pabzip.formats.context.payload import FINE, PROBLEMS, decode_chunk
from pabzip.formats.context.side_information import read_descriptions
from pabzip.formats.seeded import SeededEntry
from pabzip.seeds import InitSpec
from pabzip.seeds.cpu import generator_arguments


class ContextDecoder:
    """`pabzip.formats.coder.Decoder` of the tensors that this coder holds in one file.

    Args:
        seed: the file's seed.
        entries: of those tensors, in the order of the file.
        side: the file's side stream.

    Raises:
        FormatError: the side stream is damaged, or does not fit the entries.
    """

    def __init__(self, seed: int, entries: Sequence[SeededEntry], side: bytes):
        self._seed = seed
        told = read_descriptions(side, entries)
        self.descriptions: dict[str, Description] = {
            entry.name: description for entry, description in zip(entries, told, strict=True)
        }

    def codes(self, entry: SeededEntry, payload: Payload, out: NDArray[np.int8]) -> list[Task]:
        """Return the work that writes codes to ``out``, one piece a chunk."""
        return self._tasks(entry, payload, out, np.zeros(0, dtype=np.float32))

    def weights(self, entry: SeededEntry, payload: Payload, out: NDArray[np.float32]) -> list[Task]:
        """Return the work that writes weights to ``out``, one piece a chunk."""
        return self._tasks(entry, payload, np.zeros(0, dtype=np.int8), out)

    def _tasks(
        self,
        entry: SeededEntry,
        payload: Payload,
        codes: NDArray[np.int8],
        weights: NDArray[np.float32],
    ) -> list[Task]:
        """Return the work of one tensor."""
        return chunk_tasks(
            self.descriptions[entry.name], payload, self._seed, entry.spec, codes, weights
        )


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
    plan = ActivePlan.of(told.active)
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
