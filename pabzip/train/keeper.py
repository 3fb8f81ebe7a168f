"""Keeps the state of a run: when, where, and what there is to go back to."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from pabzip.train.cadence import Cadence, SaveEvery
from pabzip.train.progress_file import ProgressFile


class Keeper:
    """Saves the state of a run beside its output, on the first process alone.

    Args:
        output: the run's output.
        every: how often; None: never.
        writes: whether this process is the one that writes.
    """

    def __init__(self, output: str | os.PathLike[str], every: SaveEvery | None, *, writes: bool):
        self._file = ProgressFile(output)
        self._cadence = Cadence(every)
        self._first = writes
        self._writes = writes and every is not None
        self._kept: str | None = None

    @property
    def path(self) -> str:
        """Path of the file that holds the state."""
        return self._file.path

    def found(self) -> dict[str, Any] | None:
        """Return the state that an earlier run left; None when there is none.

        Raises:
            CheckpointError: there is one, and it is damaged.
        """
        if not self._file.exists():
            return None
        state = self._file.read()
        self._kept = _where(state)
        return state

    def step_due(self) -> bool:
        """Count a step and say whether to save after it."""
        return self._cadence.step_due()

    def epoch_due(self) -> bool:
        """Count an epoch and say whether to save after it."""
        return self._cadence.epoch_due()

    def save(self, state: Callable[[], Mapping[str, Any]]) -> None:
        """Save what ``state`` returns, if this run saves at all.

        Raises:
            OSError: it cannot be written; what was saved before stays.
        """
        if self._writes:
            values = state()
            self._file.write(values)
            self._kept = _where(values)
        self._cadence.saved()

    def remove(self) -> None:
        """Remove the state: the output is complete."""
        self._file.remove()

    def remains(self) -> str:
        """Say what a run that fails now leaves; the first process knows."""
        if not self._first:
            return "rank 0 says what is kept"
        if self._kept is None:
            return "nothing was written"
        return f"the state after {self._kept} is kept in {self.path}"


def _where(state: Mapping[str, Any]) -> str:
    """Say where a state stands, for people."""
    epochs, step = len(state["history"]), state["step"]
    if step:
        return f"epoch {epochs + 1}, step {step}"
    return f"epoch {epochs}" if epochs else "the search"
