"""The part of a recipe that says how the mask is searched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pabzip.errors import RecipeError
from pabzip.train.validation import check_choice, check_integer, check_ratios

SEARCHES = ("synflow", "snip", "grasp", "magnitude", "random", "layerwise-random")
SCHEDULES = ("exponential", "linear")
SCOPES = ("global", "layer")
SEARCH_PRECISIONS = ("float64", "float32")


@dataclass(frozen=True, slots=True)
class SearchRecipe:
    """How the mask is searched; the dense methods do without.

    Attributes:
        method: what scores the weights: ``"synflow"`` (no data), ``"snip"`` and ``"grasp"``
            (gradients of training images), ``"magnitude"``, ``"random"`` (one ratio for all), or
            ``"layerwise-random"`` (a ratio for each weight).
        iterations: pruning steps of the schedule, 1 or more; None takes the published number, 100
            for SynFlow and 1 for the others. With SynFlow few iterations prune much at once and
            risk layer collapse.
        schedule: how the kept fraction falls over the iterations: ``"exponential"`` or
            ``"linear"``.
        scope: one threshold over all weights (``"global"``) or one for each (``"layer"``), which
            then all keep the same fraction. Not used by ``"layerwise-random"``.
        epoch: the epoch after which the last search happens, less than the epochs of the run;
            0 searches at initialisation.
        shots: how many searches, spread evenly over epochs 0 to ``epoch``; the pruned fraction
            rises linearly from one to the next. 1 or more, at most ``epoch + 1``.
        precision: in which SynFlow computes: ``"float64"``, as published, or ``"float32"``, the
            fast form. Not used by the others.
        samples: training images that SNIP and GraSP measure on, 1 or more. Not used by the others.
        ratios: for ``"layerwise-random"`` alone: the fraction to keep by name of the weight, each
            above 0 and at most 1; weights that are not named keep `Recipe.keep_ratio`.

    Raises:
        RecipeError: a value out of range, or values that contradict each other.

    Source: Tanaka et al. 2020; Peek-a-Boo, Sections 3.2 and 4.1 (SynFlow, 100 iterations),
    Appendix C (``epoch``, Figure 5; ``shots``, Table 4).
    """

    method: str = "synflow"
    iterations: int | None = None
    schedule: str = "exponential"
    scope: str = "global"
    epoch: int = 0
    shots: int = 1
    precision: str = "float64"
    samples: int = 100
    ratios: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("search.method", self.method, SEARCHES)
        if self.iterations is not None:
            check_integer("search.iterations", self.iterations, 1)
        check_choice("search.schedule", self.schedule, SCHEDULES)
        check_choice("search.scope", self.scope, SCOPES)
        check_integer("search.epoch", self.epoch, 0)
        check_integer("search.shots", self.shots, 1)
        check_choice("search.precision", self.precision, SEARCH_PRECISIONS)
        check_integer("search.samples", self.samples, 1)
        check_ratios("search.ratios", self.ratios)
        if self.shots > self.epoch + 1:
            raise RecipeError(
                f"search.shots: expected at most {self.epoch + 1}, one for each of the epochs 0 to "
                f"search.epoch = {self.epoch}, found {self.shots}; raise search.epoch"
            )
        if self.ratios and self.method != "layerwise-random":
            raise RecipeError(
                f"search.ratios: expected none for search.method = {self.method!r}, found "
                f"{len(self.ratios)}; they are for layerwise-random"
            )

    @property
    def rounds(self) -> int:
        """Pruning steps of the schedule: ``iterations``, or the published number."""
        if self.iterations is not None:
            return self.iterations
        return published_rounds(self.method)


def published_rounds(method: object) -> int:
    """Return how many pruning steps the search ``method`` was published with."""
    return 100 if method == "synflow" else 1


def settled(search: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain values of a search with its iterations as a number, for comparing two.

    Args:
        search: by name of the attribute, as `pabzip.train.to_dict` gives them; a file's may be
            anything.
    """
    if search.get("iterations") is not None:
        return dict(search)
    return {**search, "iterations": published_rounds(search.get("method"))}
