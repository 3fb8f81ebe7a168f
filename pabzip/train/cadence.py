"""When a run saves its state: after so many steps, epochs or minutes, whichever comes first."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from pabzip.errors import RecipeError
from pabzip.train.validation import check_integer, check_number

_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(steps?|epochs?|min|minutes?)")
_UNITS = {"s": "steps", "e": "epochs", "m": "minutes"}


@dataclass(frozen=True, slots=True)
class SaveEvery:
    """How often a run saves its state; it is saved when any of these is due.

    Attributes:
        steps: 1 or more; None: steps do not matter.
        epochs: 1 or more; None: epochs do not matter.
        minutes: since the last save, above 0; None: time does not matter.

    Raises:
        RecipeError: a value out of range.
    """

    steps: int | None = None
    epochs: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.steps is not None:
            check_integer("save_every.steps", self.steps, 1)
        if self.epochs is not None:
            check_integer("save_every.epochs", self.epochs, 1)
        if self.minutes is not None:
            check_number("save_every.minutes", self.minutes, above=0)

    @classmethod
    def parse(cls, text: str) -> SaveEvery:
        """Read such as ``10min``, ``500 steps``, ``1 epoch``, or several: ``1epoch,10min``.

        Raises:
            RecipeError: it is none of these.
        """
        found: dict[str, float] = {}
        for part in text.lower().split(","):
            match = _PART.fullmatch(part.strip())
            unit = "" if match is None else _UNITS[match[2][0]]
            if match is None or unit in found or ("." in match[1] and unit != "minutes"):
                raise RecipeError(
                    f"save_every: expected such as 10min, 500steps, 1epoch or 1epoch,10min, "
                    f"found {text!r}"
                )
            found[unit] = float(match[1]) if unit == "minutes" else int(match[1])
        return cls(**found)  # type: ignore[arg-type]


class Cadence:
    """Says when a save is due.

    Args:
        every: how often; None: never.
        clock: the time in seconds; another one for tests.
    """

    def __init__(self, every: SaveEvery | None, clock: Callable[[], float] = monotonic):
        self._every = every
        self._clock = clock
        self._saved = clock()
        self._steps = 0
        self._epochs = 0

    def step_due(self) -> bool:
        """Count a step and say whether to save after it."""
        self._steps += 1
        return self._due()

    def epoch_due(self) -> bool:
        """Count an epoch and say whether to save after it."""
        self._epochs += 1
        return self._due()

    def saved(self) -> None:
        """Begin to count again."""
        self._saved = self._clock()
        self._steps = self._epochs = 0

    def _due(self) -> bool:
        """Say whether enough of anything has gone by since the last save."""
        every = self._every
        if every is None:
            return False
        return (
            (every.steps is not None and self._steps >= every.steps)
            or (every.epochs is not None and self._epochs >= every.epochs)
            or (every.minutes is not None and self._clock() - self._saved >= 60 * every.minutes)
        )
