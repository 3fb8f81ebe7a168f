"""Callbacks: what a training run calls as it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pabzip.train.config import Recipe
from pabzip.train.results import EpochStats, TrainResult

if TYPE_CHECKING:
    from pabzip.train.cost import StepCosts


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands within an epoch.

    Attributes:
        epoch: counted from 1.
        step: steps done in this epoch.
        loss: mean cross-entropy of the epoch so far.
        accuracy: training accuracy of the epoch so far.
        flips_per_step: mean number of signs flipped in a step of the epoch so far.
    """

    epoch: int
    step: int
    loss: float
    accuracy: float
    flips_per_step: float


class Observer:
    """What a training run tells. Subclass it and write the methods you need; the rest do nothing.

    Observers run between steps, on the training thread; whatever they raise ends the run.
    """

    def resumed(self, history: Sequence[EpochStats], step: int) -> None:
        """Learn, before `started`, that an earlier run is continued.

        Args:
            history: the epochs that it finished.
            step: steps that it took in the epoch after those.
        """

    def started(self, recipe: Recipe, steps: int) -> None:
        """Learn that the run begins with its search; an epoch will have ``steps`` steps."""

    def searched(self, iteration: int, iterations: int) -> None:
        """Learn that an iteration of the search is done, counted from 1."""

    def counted(self, costs: StepCosts) -> None:
        """Learn what a training step costs: before the first one, and after each later search."""

    def stepped(self, progress: Progress) -> None:
        """Learn how the epoch goes; every few steps only, since reading the numbers takes time."""

    def epoch_ended(self, stats: EpochStats) -> None:
        """Learn that an epoch and its evaluation are done."""

    def finished(self, result: TrainResult) -> None:
        """Learn that the run is complete and its checkpoint written."""

    def close(self) -> None:
        """Let go of files and the like: the run is over, complete or not. Called exactly once."""
