"""Decode tensors of the ``context`` coder: the side stream at once, payloads chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pabzip.formats.coder import Payload, Task
from pabzip.formats.context.chunks import chunk_tasks
from pabzip.formats.context.description import Description
from pabzip.formats.context.exchange import read_descriptions
from pabzip.formats.entries import SeededEntry


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
