"""How many weights survive after each iteration of a search."""

from __future__ import annotations

from pabzip.errors import SearchError


def exponential_schedule(keep_ratio: float, iterations: int, weights: int) -> list[int]:
    """Return the number of survivors after each iteration, falling exponentially.

    Args:
        keep_ratio: fraction of the weights that survive the last iteration, in (0, 1].
        iterations: how many steps lead there, at least 1.
        weights: N, the number of weights that the search decides on.

    Returns:
        ``iterations`` integers; the i-th (from 1) is ``round(keep_ratio ** (i / iterations) * N)``,
        so the last is ``round(keep_ratio * N)`` exactly.

    Raises:
        SearchError: an argument out of range, or a keep ratio that leaves no weight at all.

    Source: Tanaka et al. 2020 (SynFlow), Algorithm 1; Peek-a-Boo, Section 4.1 (100 iterations).
    """
    if isinstance(keep_ratio, bool) or not 0.0 < keep_ratio <= 1.0:
        raise SearchError(
            f"keep_ratio: expected a fraction with 0 < keep_ratio <= 1, found {keep_ratio!r}; "
            "0.1 keeps a tenth of the weights"
        )
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise SearchError(f"iterations: expected an integer of at least 1, found {iterations!r}")
    steps = [round(keep_ratio ** (i / iterations) * weights) for i in range(1, iterations)]
    last = round(keep_ratio * weights)
    if last < 1:
        raise SearchError(
            f"keep_ratio: {keep_ratio!r} of {weights} weights leaves none; expected at least one "
            f"survivor, raise keep_ratio to {1 / max(weights, 1):.3g} or more"
        )
    return [*steps, last]
