"""How many weights survive after each iteration of a search."""

from __future__ import annotations

from collections.abc import Callable

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
    last, alive = check_target(keep_ratio, iterations, weights, alive)
    ratio = keep_ratio / (alive / weights)
    return [*(round(ratio ** (i / iterations) * alive) for i in range(1, iterations)), last]


def linear_schedule(
    keep_ratio: float, iterations: int, weights: int, *, alive: int | None = None
) -> list[int]:
    """Return the number of survivors after each iteration: each prunes the same number.

    Args:
        keep_ratio: fraction of the weights that survive the last iteration, in (0, 1].
        iterations: how many steps lead there, at least 1.
        weights: N, the number of weights that the search decides on.
        alive: A, how many of them an earlier search has left; all of them by default.

    Returns:
        ``iterations`` integers; the i-th (from 1) is ``A - (A - keep_ratio * N) * i /
        iterations``, rounded, so the last is ``round(keep_ratio * N)`` exactly.

    Raises:
        SearchError: as `exponential_schedule`.

    Source: Tanaka et al. 2020, the published code's other schedule.
    """
    last, alive = check_target(keep_ratio, iterations, weights, alive)
    fall = alive - keep_ratio * weights
    return [*(round(alive - fall * i / iterations) for i in range(1, iterations)), last]


SCHEDULES: dict[str, Schedule] = {
    "exponential": exponential_schedule,
    "linear": linear_schedule,
}
"""The schedules by name."""


def check_target(
    keep_ratio: float, iterations: int, weights: int, alive: int | None, of: str = ""
) -> tuple[int, int]:
    """Return how many weights survive in the end, and how many are alive now.

    Args:
        keep_ratio: fraction of ``weights`` that survives.
        iterations: of the search.
        weights: number of weights.
        alive: number of weights that are not pruned; None for all.
        of: whose weights they are, for messages, such as ``" of 'conv1.weight'"``.

    Raises:
        SearchError: an argument out of range, or a target of none or of more than there are.
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
