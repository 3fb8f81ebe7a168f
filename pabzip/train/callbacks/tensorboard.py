"""Event files for TensorBoard."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from pabzip._optional import require
from pabzip.registry import register_callback
from pabzip.train.callbacks.base import Callback
from pabzip.train.config import Recipe, to_dict
from pabzip.train.results import EpochStats, Progress, TrainResult


@register_callback(
    "tensorboard",
    help="Write event files for TensorBoard.",
    metavar="DIR",
)
class TensorBoard(Callback):
    """Writes event files that ``tensorboard --logdir`` shows; steps are counted over all epochs.

    A run that is continued writes a further event file, whose steps replace those that an earlier
    one had beyond the state that was saved.

    Args:
        folder: where the event files go; made where it is missing.

    Raises:
        MissingDependencyError: tensorboard is missing; raised by `on_train_start`.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self._folder = os.fspath(folder)
        self._writer: Any = None
        self._steps = 0
        self._done: tuple[int, int] | None = None

    def on_resume(self, history: Sequence[EpochStats], step: int) -> None:
        """Remember where the earlier run stood."""
        self._done = (len(history), step)

    def on_train_start(self, recipe: Recipe, steps: int) -> None:
        """Open an event file and write the recipe."""
        require("tensorboard", extra="train", purpose="the callback tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._steps = steps
        purge = None if self._done is None else self._done[0] * steps + self._done[1] + 1
        self._writer = SummaryWriter(self._folder, purge_step=purge)
        text = json.dumps(to_dict(recipe), indent=4)
        self._writer.add_text("recipe", "\n".join(f"    {line}" for line in text.splitlines()))

    def on_step_end(self, progress: Progress) -> None:
        """Write the epoch's numbers so far."""
        step = (progress.epoch - 1) * self._steps + progress.step
        self._write(
            step,
            {
                "running/loss": progress.loss,
                "running/accuracy": progress.accuracy,
                "running/flips_per_step": progress.flips_per_step,
            },
        )

    def on_epoch_end(self, stats: EpochStats) -> None:
        """Write one epoch, at its last step."""
        loss, accuracy = stats.measured
        values = {
            "loss/train": stats.loss,
            f"loss/{stats.part}": loss,
            "accuracy/train": stats.train_accuracy,
            f"accuracy/{stats.part}": accuracy,
            "signs/flips_per_step": stats.flips_per_step,
            "signs/flipped": stats.flipped,
        }
        if stats.expected_bytes is not None:
            values["ticket/expected_bytes"] = stats.expected_bytes
        self._write(stats.epoch * self._steps, values)
        self._writer.flush()

    def on_train_end(self, result: TrainResult) -> None:
        """Write what the test images gave, where epochs were measured on others."""
        if result.validation_accuracy is not None:
            values = {"loss/test": result.test_loss, "accuracy/test": result.test_accuracy}
            self._write(result.epochs * self._steps, values)

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, step: int, values: dict[str, float]) -> None:
        """Write scalars of one step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
