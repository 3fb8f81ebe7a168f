"""Edge-popup: keep the weights with the largest scores, and learn the scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from pabzip.errors import RecipeError
from pabzip.seeds import Frozen
from pabzip.supermask.scores import MakeOptimizer, ScoreRule, check_keep_ratio, gradual_keep_ratio

SCOPES = ("layer", "global")


class EdgePopup(ScoreRule):
    r"""Keeps the weights whose scores are the largest in size, a fixed number of them.

    With gradient g of a weight w0 and its score s, ``d = g * w0 * sign(s)``, and of n weights
    ``n - int((1 - keep_ratio) * n)`` are kept, over the whole network
    ``n - ceil((1 - keep_ratio) * n)``: those with the largest ``|s|``. A weight that is pruned now
    goes on having a gradient, so it can come back.

    Args:
        net: a network drawn from a seed, whose seeded weights are float32.
        optimizer: builds what moves the scores (`ScoreRule`).
        keep_ratio: fraction of the weights that are kept, above 0, at most 1.
        scope: ``"layer"`` keeps that fraction of each weight tensor, as published; ``"global"`` of
            all together.
        epochs: of the whole run; None prunes at once. Otherwise the fraction falls gradually
            (`gradual_keep_ratio`).
        period: epochs from one fall to the next; None without ``epochs``.
        penalty: as for `ScoreRule`.
        norm: as for `ScoreRule`.
        frozen: as for `ScoreRule`; weights that are kept for good count as kept, so that the whole
            mask has ``keep_ratio``.

    Raises:
        RecipeError: a value out of range.

    Source: Ramanujan et al. 2020, "What's Hidden in a Randomly Weighted Neural Network?", with the
    size of the score as in the published code (the paper's text ranks the score itself); Rare
    Gems, Table 3, for ``scope="global"``, the gradual fall and the penalty. The counts are those of
    the published codes. Deviation: the published gradual form prunes once more than its schedule
    says when it computes, and compares signed scores with a threshold of sizes; here the fraction
    is the schedule's, and equal scores are settled by position.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: MakeOptimizer,
        keep_ratio: float,
        *,
        scope: str = "layer",
        epochs: int | None = None,
        period: int | None = None,
        penalty: float = 0.0,
        norm: int = 2,
        frozen: Frozen | Mapping[str, Frozen] | None = None,
    ):
        name = type(self).__name__
        check_keep_ratio(name, keep_ratio)
        if scope not in SCOPES:
            raise RecipeError(
                f"{name}: scope: expected one of {', '.join(SCOPES)}, found {scope!r}"
            )
        self.keep_ratio, self.scope, self.epochs, self.period = keep_ratio, scope, epochs, period
        super().__init__(net, optimizer, penalty=penalty, norm=norm, frozen=frozen)

    def _begin(self, name: str) -> Tensor:
        return self.kaiming_uniform(name)

    def end_epoch(self) -> None:
        """Count one finished epoch, and prune where the fraction falls after it."""
        super().end_epoch()
        if self.epochs is not None:
            self._write()

    def _gradient(self, name: str, gradient: Tensor) -> Tensor:
        return super()._gradient(name, gradient) * self.scores[name].sign()

    def _factors(self) -> Mapping[str, Tensor]:
        sizes = {name: score.abs() for name, score in self.scores.items()}
        if self.scope == "global":
            return self._largest(sizes, math.ceil)
        return {name: self._largest({name: size}, int)[name] for name, size in sizes.items()}

    def _largest(
        self, sizes: Mapping[str, Tensor], rounded: Callable[[float], int]
    ) -> dict[str, Tensor]:
        """Return which of the scores are kept, of one weight tensor or of all together."""
        ratio = self.keep_ratio
        if self.epochs is not None and self.period is not None:
            ratio = gradual_keep_ratio(self.epoch, self.epochs, self.period, ratio)
        count = sum(size.numel() for size in sizes.values())
        return self.keep_largest(sizes, count - rounded((1.0 - ratio) * count))
