"""Callbacks: what a training run calls as it goes on, and how the command line builds them by name.

A callback is a class in a module of its own in this folder, or in a user's package::

    @register_callback("json-log", help="Write one JSON object an epoch.", metavar="FILE.jsonl")
    class JsonLog(Callback): ...

From then on ``pabzip train --callback json-log=run.jsonl`` builds it. The facts beside the name:

======== ===========================================================================================
help     what it does, one line for ``--help``
metavar  what its argument is, such as ``"FILE.jsonl"``; left out where it takes none
writes   ``"file"`` where the argument is a file that it writes: never over another without --force
suffix   how that file's name must end, such as ``".png"``
======== ===========================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pabzip.errors import RecipeError
from pabzip.registry import CALLBACKS

if TYPE_CHECKING:
    from pabzip.train.config import Recipe
    from pabzip.train.results import EpochStats, Progress, StepCosts, TrainResult


class Callback:
    """What a run calls. Subclass it and write the methods you need; the rest do nothing.

    Callbacks run between steps, on the training thread; whatever they raise ends the run. With
    several processes, those of the first alone are called.
    """

    def on_resume(self, history: Sequence[EpochStats], step: int) -> None:
        """Called before `on_train_start` where an earlier run is continued.

        Args:
            history: the epochs that it finished.
            step: steps that it took in the epoch after those.
        """

    def on_train_start(self, recipe: Recipe, steps: int) -> None:
        """Called before the first search; an epoch will have ``steps`` steps."""

    def on_search_iteration(self, iteration: int, iterations: int) -> None:
        """Called after each iteration of a search, counted from 1."""

    def on_costs(self, costs: StepCosts) -> None:
        """Called with what a training step costs: before the first, and after each later search."""

    def on_step_end(self, progress: Progress) -> None:
        """Called after every 20th step and an epoch's last: reading the numbers takes time."""

    def on_epoch_end(self, stats: EpochStats) -> None:
        """Called after an epoch and its evaluation."""

    def on_train_end(self, result: TrainResult) -> None:
        """Called when the run is complete and its checkpoint written."""

    def close(self) -> None:
        """Let go of files and the like: the run is over, complete or not. Called exactly once."""


def parse_callback(text: str, place: str = "--callback") -> tuple[str, str | None]:
    """Read ``NAME`` or ``NAME=ARGUMENT``, as ``pabzip train --callback`` takes it; imports nothing.

    Args:
        text: what was typed.
        place: the flag that it was typed after, for messages.

    Returns:
        The name and the argument, for `build_callback`.

    Raises:
        RecipeError: no such callback, an argument that is missing or that it does not take, or one
            that does not end as it must.
    """
    name, _, given = text.partition("=")
    argument = given or None
    facts = CALLBACKS.facts(name)
    metavar, suffix = facts.get("metavar"), facts.get("suffix", "")
    if (metavar is None) != (argument is None):
        wanted = name if metavar is None else f"{name}={metavar}"
        raise RecipeError(f"{place}: expected {wanted}, found {text!r}")
    if argument is not None and not argument.lower().endswith(suffix):
        raise RecipeError(f"{place}: expected a name that ends in {suffix}, found {argument!r}")
    return name, argument


def build_callback(name: str, argument: str | None = None) -> Callback:
    """Build a registered callback; `parse_callback` says whether it takes an argument.

    Raises:
        RecipeError: no such callback.
    """
    callback: Callback = CALLBACKS.get(name)(*([] if argument is None else [argument]))
    return callback
