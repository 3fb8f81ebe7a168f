"""Watch a training run: a progress bar, a log in JSON lines, or something of your own."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import IO, Any

from pabzip._version import __version__
from pabzip.train.recipes import Recipe
from pabzip.train.results import EpochStats, TrainResult
from pabzip.train.toml import to_dict


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

    def started(self, recipe: Recipe, steps: int) -> None:
        """Learn that the run begins with its search; an epoch will have ``steps`` steps."""

    def searched(self, iteration: int, iterations: int) -> None:
        """Learn that an iteration of the search is done, counted from 1."""

    def stepped(self, progress: Progress) -> None:
        """Learn how the epoch goes; every few steps only, since reading the numbers takes time."""

    def epoch_ended(self, stats: EpochStats) -> None:
        """Learn that an epoch and its evaluation are done."""

    def finished(self, result: TrainResult) -> None:
        """Learn that the run is complete and its checkpoint written."""

    def close(self) -> None:
        """Let go of files and the like: the run is over, complete or not. Called exactly once."""


class ProgressBar(Observer):
    """A bar on stderr, and only where stderr is a terminal.

    Shows loss, training accuracy and flips a step; after each epoch the test accuracy.

    Args:
        file: where the bar goes; stderr by default.
    """

    def __init__(self, file: IO[str] | None = None):
        self._file = file
        self._bar: Any = None
        self._steps = 0
        self._test: str | None = None

    def started(self, recipe: Recipe, steps: int) -> None:
        """Draw the bar."""
        from tqdm import tqdm

        file = sys.stderr if self._file is None else self._file
        self._steps = steps
        self._bar = tqdm(
            total=recipe.epochs * steps,
            desc="search",
            unit="step",
            file=file,
            disable=not file.isatty(),
            dynamic_ncols=True,
        )

    def searched(self, iteration: int, iterations: int) -> None:
        """Count the iterations of the search."""
        self._bar.set_description_str(f"search {iteration}/{iterations}")

    def stepped(self, progress: Progress) -> None:
        """Move the bar and show the epoch's numbers so far."""
        self._bar.set_description_str(f"epoch {progress.epoch}", refresh=False)
        numbers = {
            "loss": f"{progress.loss:.4f}",
            "train": f"{progress.accuracy:.2%}",
            "flips/step": f"{progress.flips_per_step:.1f}",
        }
        if self._test is not None:
            numbers["test"] = self._test
        self._bar.set_postfix(numbers, refresh=False)
        self._bar.update((progress.epoch - 1) * self._steps + progress.step - self._bar.n)

    def epoch_ended(self, stats: EpochStats) -> None:
        """Remember the test accuracy, to be shown from now on."""
        self._test = f"{stats.test_accuracy:.2%}"

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


class JsonLog(Observer):
    """A log of one JSON object a line, each written at once, so that a killed run leaves its part.

    The first line has ``event`` ``"start"`` and the recipe, then one ``"epoch"`` an epoch with the
    numbers of `EpochStats`, the last ``"result"`` with those of `TrainResult`.

    Args:
        target: path of the file, which is replaced, or an open text stream, which stays open.
    """

    def __init__(self, target: str | os.PathLike[str] | IO[str]):
        self._target = target
        self._file: IO[str] | None = None

    def started(self, recipe: Recipe, steps: int) -> None:
        """Open the file and write the recipe."""
        target = self._target
        if isinstance(target, str | os.PathLike):
            self._file = open(target, "w", encoding="utf-8")  # noqa: SIM115 (closed in close)
        else:
            self._file = target
        self._write("start", {"pabzip": __version__, "steps": steps, "recipe": to_dict(recipe)})

    def epoch_ended(self, stats: EpochStats) -> None:
        """Write one epoch."""
        self._write("epoch", stats.to_dict())

    def finished(self, result: TrainResult) -> None:
        """Write the result."""
        self._write("result", result.to_dict())

    def close(self) -> None:
        """Close the file that `started` opened."""
        if self._file is not None and self._file is not self._target:
            self._file.close()

    def _write(self, event: str, values: dict[str, Any]) -> None:
        """Write one line and flush it."""
        assert self._file is not None
        line = json.dumps({"event": event, **values}, allow_nan=False)
        self._file.write(f"{line}\n")
        self._file.flush()
