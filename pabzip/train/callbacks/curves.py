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
_MEASURED = "#d1603d"


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
    """Draw five panels over the epochs, or four where no file size was expected."""
    from matplotlib.figure import Figure

    part = stats[-1].part
    sized = any(each.expected_bytes is not None for each in stats)
    # Made without pyplot, a figure draws by Agg, whatever the environment has.
    figure = Figure(figsize=(12, 7), dpi=120, layout="constrained")
    figure.suptitle(title)
    panels = figure.subplot_mosaic("LLLAAA;SSFFBB" if sized else "LLLAAA;SSSFFF")
    _draw(panels["L"], "loss (nats)", stats, ["loss", f"{part}_loss"])
    _draw(panels["A"], "accuracy (%)", stats, ["train_accuracy", f"{part}_accuracy"], 100)
    _draw(panels["S"], "signs flipped a step", stats, ["flips_per_step"])
    _draw(panels["F"], "survivors with a flipped sign (%)", stats, ["flipped"], 100)
    if sized:
        _draw(panels["B"], "expected size of the file (kB)", stats, ["expected_bytes"], 1e-3)
    return figure


def _draw(
    axes: Axes, title: str, stats: Sequence[EpochStats], names: Sequence[str], scale: float = 1
) -> None:
    """Draw one quantity: for training and for measured images, or a single one from zero up."""
    epochs = [each.epoch for each in stats]
    mark = "." if len(epochs) <= 30 else ""  # points, as a single epoch has no line
    looks = ((_TRAIN, "training, as seen"), (_MEASURED, stats[-1].part))
    for name, (color, label) in zip(names, looks, strict=False):
        found = [getattr(each, name) for each in stats]
        values = [float("nan") if value is None else scale * value for value in found]
        axes.plot(epochs, values, color=color, label=label, marker=mark)
    if len(names) == 1:
        largest = max((value for value in values if value == value), default=0.0)  # not NaN
        axes.set_ylim(0, 1.1 * largest or 1.0)
    else:
        axes.legend(frameon=False)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("epoch")
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
