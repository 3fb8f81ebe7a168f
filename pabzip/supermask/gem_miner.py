"""Gem-Miner: scores between 0 and 1 that are rounded, and frozen round by round."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pabzip.errors import RecipeError
from pabzip.search.masks import keep_largest
from pabzip.seeds import Frozen
from pabzip.supermask.scores import COUNTS, MakeOptimizer, ScoreRule, check_keep_ratio, fall_epochs

_TIE = 1e-12
"""Scores that lie closer to each other count as equal."""


class GemMiner(ScoreRule):
    r"""Keeps the weights whose scores are at least a half, and freezes the lowest for good.

    Scores begin evenly between 0 and 1, and are brought back to there after every step. A weight
    is kept where its score is at least 0.5 and it is not frozen. With gradient g of a weight w0,
    ``d = g * w0``, or 0 where it is frozen.

    After some epochs (`fall_epochs`) the lowest scores of all weights that are not yet frozen are
    frozen: of n, ``ceil((1 - r) * n)``, with the same r each time. Their scores become 0 and stay
    so. With F such epochs ``r = keep_ratio ** (1 / F)``, so that at the end at most that fraction
    of the weights is kept; fewer where the penalty has pressed more scores below a half.

    Args:
        net: a network drawn from a seed, whose seeded weights are float32.
        optimizer: builds what moves the scores (`ScoreRule`).
        keep_ratio: fraction of the weights that is not frozen at the end, above 0, at most 1; 1
            never freezes (the paper's Gem-Miner without sparsity control).
        epochs: of the whole run.
        period: epochs from one freezing to the next.
        counts: ``"published"`` as said above; ``"paper"`` freezes after every multiple of
            ``period`` with ``r = keep_ratio ** (period / epochs)``, which ends at ``keep_ratio``
            where ``period`` divides ``epochs`` and above it elsewhere.
        restore: after the last epoch keep every weight that is not frozen, whatever its score, as
            the published code does before fine-tuning.
        penalty: as for `ScoreRule`.
        norm: as for `ScoreRule`.
        frozen: as for `EdgePopup`: what the seed fixes is never scored.

    Attributes:
        pruned: bool tensors by name of the weight, True where a score is frozen at 0.

    Raises:
        RecipeError: a value out of range.

    Source: Rare Gems (Sreenivasan et al. 2022), Algorithm 1, whose ``1 - exp(c T)`` must read
    ``1 - exp(-c T)``; its published code for r, the epochs and ``ceil``. Deviations: the published
    code keeps scores above 0.5, the paper and we also those equal to it. It freezes all scores that
    equal the last frozen one (all that have reached 1, say); here those freeze first that began
    lower, so that counts are exact. It lets frozen scores go on moving without effect; the paper
    and we make them 0.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: MakeOptimizer,
        keep_ratio: float,
        *,
        epochs: int,
        period: int = 5,
        counts: str = "published",
        restore: bool = False,
        penalty: float = 0.0,
        norm: int = 2,
        frozen: Frozen | Mapping[str, Frozen] | None = None,
    ):
        check_keep_ratio("GemMiner", keep_ratio)
        if counts not in COUNTS:
            raise RecipeError(
                f"GemMiner: counts: expected one of {', '.join(COUNTS)}, found {counts!r}"
            )
        if epochs < 1 or period < 1:
            raise RecipeError(
                f"GemMiner: expected epochs and period of 1 or more, found {epochs!r} and "
                f"{period!r}"
            )
        self._falls = fall_epochs(epochs, period, counts)
        share = 1 / len(self._falls) if counts == "published" else min(period / epochs, 1.0)
        self._restored_after = epochs if restore else math.inf
        self.pruned: dict[str, Tensor] = {}
        super().__init__(net, optimizer, penalty=penalty, norm=norm, frozen=frozen)
        left = self.learned_keep_ratio(keep_ratio)
        self._rate = 1.0 - math.exp(math.log(left) * share) if left else 1.0

    def _begin(self, name: str) -> Tensor:
        self.pruned[name] = torch.zeros_like(self.weights[name], dtype=torch.bool)
        return self._begin_score(name)

    def _begin_score(self, name: str) -> Tensor:
        """Return the scores that a weight began with."""
        return self.uniform(name, 1.0).abs()

    def _gradient(self, name: str, gradient: Tensor) -> Tensor:
        return super()._gradient(name, gradient).masked_fill_(self.pruned[name], 0.0)

    def _project(self) -> None:
        for name, score in self.scores.items():
            score.clamp_(0.0, 1.0).masked_fill_(self.pruned[name], 0.0)

    def _factors(self) -> Mapping[str, Tensor]:
        if self.epoch >= self._restored_after:
            return {name: ~pruned for name, pruned in self.pruned.items()}
        return {
            name: (s >= 0.5).logical_and_(~self.pruned[name]) for name, s in self.scores.items()
        }

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Count one finished epoch, and freeze the lowest scores if it is time."""
        super().end_epoch()
        if self.epoch in self._falls:
            active = {name: ~pruned for name, pruned in self.pruned.items()}
            for name, fixed in self.frozen.items():
                active[name] &= ~fixed
            count = sum(int(torch.count_nonzero(part)) for part in active.values())
            ranked = {
                name: score.double() + _TIE * self._begin_score(name)
                for name, score in self.scores.items()
            }
            kept = keep_largest(ranked, active, count - math.ceil(self._rate * count))
            for name, mask in kept.items():
                self.pruned[name].copy_(~mask)
            self._project()
        self._write()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of `ScoreRule.state_dict`, and what is frozen."""
        return {**super().state_dict(), "pruned": list(self.pruned.values())}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a `state_dict` of the same rule on the same network; weights are written anew."""
        for pruned, saved in zip(self.pruned.values(), state_dict["pruned"], strict=True):
            pruned.copy_(saved)
        super().load_state_dict(state_dict)
