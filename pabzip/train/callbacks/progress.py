"""A progress bar on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import IO, Any

from pabzip.registry import register_callback
from pabzip.train.callbacks.base import Callback
from pabzip.train.config import Recipe
from pabzip.train.results import EpochStats, Progress


@register_callback("progress", help="Show a progress bar on a terminal.")
class ProgressBar(Callback):
    """A bar on stderr, and only where stderr is a terminal.

    Shows loss, training accuracy and flips a step; after an epoch test accuracy, or validation
    accuracy where there are such images, and expected bytes.

    Args:
        file: where the bar goes; stderr by default.
    """

    def __init__(self, file: IO[str] | None = None):
        self._file = file
        self._bar: Any = None
        self._steps = 0
        self._after_epoch: dict[str, str] = {}
        self._epochs_done = 0
        self._steps_done = 0

    def on_resume(self, history: Sequence[EpochStats], step: int) -> None:
        """Begin where the earlier run stood."""
        self._epochs_done, self._steps_done = len(history), step
        if history:
            self.on_epoch_end(history[-1])

    def on_train_start(self, recipe: Recipe, steps: int) -> None:
        """Draw the bar."""
        from tqdm import tqdm

        file = sys.stderr if self._file is None else self._file
        self._steps = steps
        self._bar = tqdm(
            total=recipe.epochs * steps,
            initial=self._epochs_done * steps + self._steps_done,
            desc="search",
            unit="step",
            file=file,
            disable=not file.isatty(),
            dynamic_ncols=True,
        )

    def on_search_iteration(self, iteration: int, iterations: int) -> None:
        """Count the iterations of the search."""
        self._bar.set_description_str(f"search {iteration}/{iterations}")

    def on_step_end(self, progress: Progress) -> None:
        """Move the bar and show the epoch's numbers so far."""
        self._bar.set_description_str(f"epoch {progress.epoch}", refresh=False)
        numbers = {
            "loss": f"{progress.loss:.4f}",
            "train": f"{progress.accuracy:.2%}",
            "flips/step": f"{progress.flips_per_step:.1f}",
        }
        self._bar.set_postfix({**numbers, **self._after_epoch}, refresh=False)
        self._bar.update((progress.epoch - 1) * self._steps + progress.step - self._bar.n)

    def on_epoch_end(self, stats: EpochStats) -> None:
        """Remember accuracy and size of the ticket, to be shown from now on."""
        _, accuracy = stats.measured
        self._after_epoch = {stats.part: f"{accuracy:.2%}"}
        if stats.expected_bytes is not None:
            self._after_epoch["bytes"] = f"{stats.expected_bytes:,.0f}"

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
