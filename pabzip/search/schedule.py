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
        alive: how many of them an earlier search has left; all of them by default. Steps that ask
            for more prune nothing.

    Returns:
        ``iterations`` integers; the i-th (from 1) is `survivors` of N weights for the fraction
        ``keep_ratio ** (i / iterations)``, or ``alive`` where that is fewer.

    Raises:
        SearchError: an argument out of range, a keep ratio that leaves no weight at all, or one
            that asks for more than ``alive``.

    Source: Tanaka et al. 2020 (SynFlow), Algorithm 1; Peek-a-Boo, Section 4.1 (100 iterations).
    The counts, also those after an earlier search, are those of the code of both.
    """
    return _counts(lambda share: keep_ratio**share, keep_ratio, iterations, weights, alive)


def linear_schedule(
    keep_ratio: float, iterations: int, weights: int, *, alive: int | None = None
) -> list[int]:
    """Return the number of survivors after each iteration: each prunes the same number.

    Arguments, result and errors are those of `exponential_schedule`, but that the fraction is
    ``1 - (1 - keep_ratio) * i / iterations``. Source: the other schedule of the same code.
    """
    fall = 1.0 - keep_ratio
    return _counts(lambda share: 1.0 - fall * share, keep_ratio, iterations, weights, alive)


SCHEDULES: dict[str, Schedule] = {
    "exponential": exponential_schedule,
    "linear": linear_schedule,
}
"""The schedules by name."""


def check_fraction(ratio: float, name: str = "keep_ratio") -> None:
    """Raise SearchError, with the name, for what is no fraction that weights could survive by."""
    if isinstance(ratio, bool) or not hasattr(ratio, "__float__") or not 0.0 < ratio <= 1.0:
        raise SearchError(
            f"{name}: expected a fraction with 0 < keep_ratio <= 1, found {ratio!r}; "
            "0.1 keeps a tenth of the weights"
        )


def survivors(keep_ratio: float, weights: int) -> int:
    """Return how many of some weights a keep ratio leaves: ``N - int((1 - keep_ratio) * N)``.

    Source: the published code of Tanaka et al. 2020 and of Peek-a-Boo, whose number of pruned
    weights is rounded down.
    """
    return weights - int((1.0 - keep_ratio) * weights)


def _counts(
    fraction: Callable[[float], float],
    keep_ratio: float,
    iterations: int,
    weights: int,
    alive: int | None,
) -> list[int]:
    """Return the survivors after each iteration, from the fraction at a share of the way."""
    alive = _check_target(keep_ratio, iterations, weights, alive)
    shares = [i / iterations for i in range(1, iterations + 1)]
    return [min(alive, survivors(fraction(share), weights)) for share in shares]


def _check_target(
    keep_ratio: float, iterations: int, weights: int, alive: int | None, of: str = ""
) -> int:
    """Return how many weights are alive now; refuse a target that is out of range or missed.

    In messages, ``of`` says whose weights they are, such as ``" of 'conv1.weight'"``.
    """
    check_fraction(keep_ratio, f"keep_ratio{of}")
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise SearchError(f"iterations: expected an integer of at least 1, found {iterations!r}")
    last = survivors(keep_ratio, weights)
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
    return alive


SCOPES = ("global", "layer")
"""One threshold over all weights, or one for each weight tensor; of the n weights under a threshold
exactly `survivors` survive."""


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
