"""How many weights survive each round: schedules, and the groups of weights that compete."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from pabzip.errors import SearchError

Schedule = Callable[..., list[int]]
"""A function like `exponential_schedule`."""


def exponential_schedule(
    keep_ratio: float, iterations: int, weights: int, *, alive: int | None = None
) -> list[int]:
    """Return the number of survivors after each iteration: each keeps the same fraction.

    Args:
        keep_ratio: fraction of the weights that survive the last iteration, in (0, 1].
        iterations: how many steps lead there, at least 1.
        weights: N, the number of weights that the search decides on.
        alive: A, how many of them an earlier search has left; all of them by default.

    Returns:
        ``iterations`` integers; the i-th (from 1) is ``A * (keep_ratio * N / A) ** (i /
        iterations)``, rounded, so the last is ``round(keep_ratio * N)`` exactly.

    Raises:
        SearchError: an argument out of range, a keep ratio that leaves no weight at all, or one
            that asks for more than ``alive``.

    Source: Tanaka et al. 2020 (SynFlow), Algorithm 1; Peek-a-Boo, Section 4.1 (100 iterations).
    """
    last, alive = _check_target(keep_ratio, iterations, weights, alive)
    ratio = keep_ratio / (alive / weights)
    return [*(round(ratio ** (i / iterations) * alive) for i in range(1, iterations)), last]


def linear_schedule(
    keep_ratio: float, iterations: int, weights: int, *, alive: int | None = None
) -> list[int]:
    """Return the number of survivors after each iteration: each prunes the same number.

    Arguments and errors are those of `exponential_schedule`.

    Returns:
        ``iterations`` integers; the i-th (from 1) is ``A - (A - keep_ratio * N) * i /
        iterations``, rounded, so the last is ``round(keep_ratio * N)`` exactly.

    Source: Tanaka et al. 2020, the published code's other schedule.
    """
    last, alive = _check_target(keep_ratio, iterations, weights, alive)
    fall = alive - keep_ratio * weights
    return [*(round(alive - fall * i / iterations) for i in range(1, iterations)), last]


SCHEDULES: dict[str, Schedule] = {
    "exponential": exponential_schedule,
    "linear": linear_schedule,
}
"""The schedules by name."""


def _check_target(
    keep_ratio: float, iterations: int, weights: int, alive: int | None, of: str = ""
) -> tuple[int, int]:
    """Return how many weights survive in the end, and how many are alive now.

    In messages, ``of`` says whose weights they are, such as ``" of 'conv1.weight'"``.
    """
    if isinstance(keep_ratio, bool) or not 0.0 < keep_ratio <= 1.0:
        raise SearchError(
            f"keep_ratio{of}: expected a fraction with 0 < keep_ratio <= 1, found {keep_ratio!r}; "
            "0.1 keeps a tenth of the weights"
        )
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise SearchError(f"iterations: expected an integer of at least 1, found {iterations!r}")
    last = round(keep_ratio * weights)
    if last < 1:
        raise SearchError(
            f"keep_ratio{of}: {keep_ratio!r} of {weights} weights leaves none; expected at least "
            f"one survivor, raise keep_ratio to {1 / max(weights, 1):.3g} or more"
        )
    alive = weights if alive is None else alive
    if last > alive:
        raise SearchError(
            f"keep_ratio{of}: {keep_ratio!r} asks for {last} survivors, found only {alive} "
            "weights that are not zero already; lower keep_ratio"
        )
    return last, alive


SCOPES = ("global", "layer")
"""One threshold over all weights, or one for each weight tensor, of whose n weights exactly
``round(keep_ratio * n)`` survive."""


@dataclass(frozen=True, slots=True)
class PruneGroup:
    """Weights that compete with each other.

    Attributes:
        names: of the weights.
        keep_ratio: fraction of them all together that survives.
    """

    names: tuple[str, ...]
    keep_ratio: float

    def counts(self, masks: Mapping[str, Tensor], iterations: int, schedule: str) -> list[int]:
        """Return how many of the weights survive after each iteration; ``masks`` are of now.

        Raises:
            SearchError: a schedule that is not known, or a target that is out of range or missed;
                the message names the weight where it is one alone.
        """
        if schedule not in SCHEDULES:
            raise SearchError(
                f"schedule: expected one of {', '.join(SCHEDULES)}, found {schedule!r}"
            )
        of = f" of {self.names[0]!r}" if len(self.names) == 1 else ""
        weights = sum(masks[name].numel() for name in self.names)
        alive = sum(int(masks[name].sum()) for name in self.names)
        _check_target(self.keep_ratio, iterations, weights, alive, of)
        return SCHEDULES[schedule](self.keep_ratio, iterations, weights, alive=alive)


def prune_groups(
    weights: Mapping[str, nn.Parameter], keep_ratio: float, scope: str
) -> list[PruneGroup]:
    """Return the groups of a search with one keep ratio, by one of `SCOPES`.

    Raises:
        SearchError: another scope.
    """
    if scope == "global":
        return [PruneGroup(tuple(weights), keep_ratio)]
    if scope == "layer":
        return [PruneGroup((name,), keep_ratio) for name in weights]
    raise SearchError(f"scope: expected one of {', '.join(SCOPES)}, found {scope!r}")
