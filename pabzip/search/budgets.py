"""How many weights may survive where: one budget over all weights, or one for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from pabzip.errors import SearchError
from pabzip.search.schedule import SCHEDULES, check_target

SCOPES = ("global", "layer")
"""One threshold over all weights, or one for each."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Weights that compete with each other.

    Attributes:
        names: of the weights.
        keep_ratio: fraction of them all together that survives.
    """

    names: tuple[str, ...]
    keep_ratio: float

    def counts(self, masks: Mapping[str, Tensor], iterations: int, schedule: str) -> list[int]:
        """Return how many of the weights survive after each iteration.

        Args:
            masks: bool tensors by name, True for a weight that is not pruned yet.
            iterations: of the search.
            schedule: one of `pabzip.search.SCHEDULES`.

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
        check_target(self.keep_ratio, iterations, weights, alive, of)
        return SCHEDULES[schedule](self.keep_ratio, iterations, weights, alive=alive)


def scoped_budgets(
    weights: Mapping[str, nn.Parameter], keep_ratio: float, scope: str
) -> list[Budget]:
    """Return the budgets of a search with one keep ratio.

    Args:
        weights: the weights to search, by name.
        keep_ratio: fraction that survives.
        scope: ``"global"``: of all weights together; ``"layer"``: of each weight tensor, so each
            keeps exactly ``round(keep_ratio * n)`` of its n weights.

    Raises:
        SearchError: another scope.
    """
    if scope == "global":
        return [Budget(tuple(weights), keep_ratio)]
    if scope == "layer":
        return layer_budgets(dict.fromkeys(weights, keep_ratio))
    raise SearchError(f"scope: expected one of {', '.join(SCOPES)}, found {scope!r}")


def layer_budgets(keep_ratios: Mapping[str, float]) -> list[Budget]:
    """Return a budget for each weight tensor, from its own keep ratio."""
    return [Budget((name,), keep_ratio) for name, keep_ratio in keep_ratios.items()]
