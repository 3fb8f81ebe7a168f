"""The decoder of the `context` coder: any tensor of a file, one piece of work per chunk."""

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
from pabzip.seeds.kernels import generator_arguments


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

    Args:
        description: what the side stream says of the tensor.
        payload: its section.
        seed: the file's seed.
        spec: the tensor's init spec.
        codes: where codes go: int8, flat, all zeros; empty where they are not wanted.
        weights: where weights go: float32, likewise.

    Raises:
        FormatError: the payload's length is not what the side stream says; the work raises it
            where a chunk does not decode.
    """
    plan = ActivePlan.of(description.active)
    model = description.predictor(plan)
    data = np.frombuffer(payload, dtype=np.uint8)
    generator = (*generator_arguments(seed, spec), spec.factor)

    def task(chunk: ChunkSpan) -> Task:
        """Bind one chunk."""

        def run() -> None:
            status = decode_chunk(*generator, plan, model, data, chunk, codes, weights)
            if status != FINE:
                raise FormatError("codes", PROBLEMS[status])

        return run

    return [task(chunk) for chunk in description.spans(len(payload))]
