"""Curves of loss, accuracy, flips and bytes, drawn as a PNG."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pabzip._optional import require
from pabzip.formats.atomic import open_atomic
from pabzip.registry import register_callback
from pabzip.train.callbacks.base import Callback
from pabzip.train.config import Recipe
from pabzip.train.results import EpochStats, TrainResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_TRAIN = "#3b6fb6"
_TEST = "#d1603d"


@register_callback(
    "curves",
    help="Draw loss, accuracy, flips and bytes.",
    metavar="FILE.png",
    writes="file",
    suffix=".png",
)
class Curves(Callback):
    """Draws loss, accuracy, flips, fraction flipped and expected bytes by epoch, at the end.

    The past of a run that is continued is drawn too. matplotlib is imported at the start, so that
    its absence is noticed before the training, and none of its global state is touched.

    Args:
        target: path of the PNG, replaced only by a complete one.

    Raises:
        MissingDependencyError: matplotlib is missing; raised by `on_train_start`.
        OSError: the picture cannot be written; raised by `on_train_end`.
    """

    def __init__(self, target: str | os.PathLike[str]):
        self._target = target
        self._stats: list[EpochStats] = []

    def on_resume(self, history: Sequence[EpochStats], step: int) -> None:
        """Remember the epochs of the earlier run."""
        self._stats = list(history)

    def on_train_start(self, recipe: Recipe, steps: int) -> None:
        """Make sure that there is something to draw with."""
        require("matplotlib", extra="train", purpose="the callback curves")

    def on_epoch_end(self, stats: EpochStats) -> None:
        """Remember an epoch."""
        self._stats.append(stats)

    def on_train_end(self, result: TrainResult) -> None:
        """Draw, and write the picture."""
        title = f"{result.arch} on {result.data}, {result.method}, keep {result.keep_ratio:g}"
        with open_atomic(self._target) as file:
            draw_curves(self._stats, title).savefig(file, format="png")


def draw_curves(stats: Sequence[EpochStats], title: str) -> Figure:
    """Draw five panels, or four where no file size was expected.

    Args:
        stats: the epochs, in order; at least one.
        title: stands above.
    """
    from matplotlib.figure import Figure

    epochs = [each.epoch for each in stats]
    sizes = [each.expected_bytes for each in stats]
    sized = any(size is not None for size in sizes)
    # Made without pyplot, a figure draws by Agg, whatever the environment has.
    figure = Figure(figsize=(12, 7), dpi=120, layout="constrained")
    figure.suptitle(title)
    panels = figure.subplot_mosaic("LLLAAA;SSFFBB" if sized else "LLLAAA;SSSFFF")
    _draw(panels["L"], "loss (nats)", epochs,
          [each.loss for each in stats], [each.test_loss for each in stats])  # fmt: skip
    _draw(panels["A"], "accuracy (%)", epochs,
          [100 * each.train_accuracy for each in stats],
          [100 * each.test_accuracy for each in stats])  # fmt: skip
    _draw(panels["S"], "signs flipped a step", epochs, [each.flips_per_step for each in stats])
    _draw(panels["F"], "survivors with a flipped sign (%)", epochs,
          [100 * each.flipped for each in stats])  # fmt: skip
    if sized:
        known = [float("nan") if size is None else size / 1000 for size in sizes]
        _draw(panels["B"], "expected size of the file (kB)", epochs, known)
    return figure


def _draw(
    axes: Axes,
    name: str,
    epochs: Sequence[int],
    train: Sequence[float],
    test: Sequence[float] | None = None,
) -> None:
    """Draw one quantity: for training and for test images, or a single one from zero up."""
    mark = "." if len(epochs) <= 30 else ""  # points, as a single epoch has no line
    axes.plot(epochs, train, color=_TRAIN, label="training, as seen", marker=mark)
    if test is None:
        largest = max((value for value in train if value == value), default=0.0)  # not NaN
        axes.set_ylim(0, 1.1 * largest or 1.0)
    else:
        axes.plot(epochs, test, color=_TEST, label="test", marker=mark)
        axes.legend(frameon=False)
    axes.set_title(name, fontsize=10)
    axes.set_xlabel("epoch")
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
