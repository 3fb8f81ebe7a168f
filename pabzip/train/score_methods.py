"""The score methods: training methods that learn which weights to keep.

Each draws the network, keeps its weights as drawn, and learns a score for each
(`pabzip.supermask`). None needs a search.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from pabzip.errors import RecipeError
from pabzip.registry import register_method
from pabzip.seeds import Frozen
from pabzip.supermask import (
    Biprop,
    EdgePopup,
    FreeFlipping,
    FreePruning,
    GemMiner,
    ScoreRule,
    ScoreSchedule,
    imbalance_signs,
    remove_weights,
)
from pabzip.supermask.scores import MakeOptimizer
from pabzip.train.config import Recipe
from pabzip.train.methods import falling_rate
from pabzip.train.score_settings import KeepingSettings, ScoreSettings


def score_optimizer(own: ScoreSettings) -> MakeOptimizer:
    """Return what builds the optimizer of the scores."""

    def build(scores: list[Tensor]) -> Optimizer:
        if own.optimizer == "adam":
            return Adam(scores, own.lr, weight_decay=own.weight_decay)
        return SGD(scores, own.lr, own.momentum, weight_decay=own.weight_decay)

    return build


def score_schedule(rule: ScoreRule, own: ScoreSettings, recipe: Recipe) -> ScoreSchedule:
    """Return what ends the epochs of a rule."""
    rate = falling_rate(rule, own.schedule, recipe.sgd, recipe.epochs)
    return ScoreSchedule(rule, rate)


def frozen_part(own: KeepingSettings, recipe: Recipe) -> Frozen | None:
    """Return how much of each mask the seed fixes; None for nothing."""
    if not own.frozen:
        return None
    return Frozen.for_keep_ratio(own.frozen, recipe.keep_ratio, own.frozen_split)


@register_method("edge-popup", uses=("edge_popup", "keep_ratio"), masked=False, scores=True)
def edge_popup(net: nn.Module, recipe: Recipe) -> tuple[ScoreRule, ScoreSchedule]:
    """Keep the weights with the largest scores."""
    own = recipe.edge_popup
    rule = EdgePopup(
        net,
        score_optimizer(own),
        recipe.keep_ratio,
        scope=own.scope,
        epochs=recipe.epochs if own.gradual else None,
        period=own.period,
        penalty=own.penalty,
        norm=own.norm,
        frozen=frozen_part(own, recipe),
    )
    return rule, score_schedule(rule, own, recipe)


@register_method("gem-miner", uses=("gem_miner", "keep_ratio"), masked=False, scores=True)
def gem_miner(net: nn.Module, recipe: Recipe) -> tuple[ScoreRule, ScoreSchedule]:
    """Keep the weights whose scores round to 1, and freeze the lowest round by round."""
    own = recipe.gem_miner
    rule = GemMiner(
        net,
        score_optimizer(own),
        recipe.keep_ratio,
        epochs=recipe.epochs,
        period=own.period,
        counts=own.counts,
        restore=own.restore,
        penalty=own.penalty,
        norm=own.norm,
        frozen=frozen_part(own, recipe),
    )
    return rule, score_schedule(rule, own, recipe)


@register_method("biprop", uses=("biprop", "keep_ratio"), masked=False, scores=True)
def biprop(net: nn.Module, recipe: Recipe) -> tuple[ScoreRule, ScoreSchedule]:
    """Keep the weights with the largest scores, with one magnitude a layer."""
    own = recipe.biprop
    rule = Biprop(
        net,
        score_optimizer(own),
        recipe.keep_ratio,
        gradient=own.gradient,
        scope=own.scope,
        penalty=own.penalty,
        norm=own.norm,
        frozen=frozen_part(own, recipe),
    )
    return rule, score_schedule(rule, own, recipe)


@register_method("free-pruning", uses=("connectivity",), masked=False, scores=True)
@register_method("minimal-pruning", uses=("connectivity",), masked=False, scores=True)
@register_method("free-flipping", uses=("connectivity",), masked=False, scores=True)
@register_method("minimal-flipping", uses=("connectivity",), masked=False, scores=True)
def connectivity(net: nn.Module, recipe: Recipe) -> tuple[ScoreRule, ScoreSchedule]:
    """Prune or flip the weights whose number falls below zero."""
    amount, _, change = recipe.method.partition("-")
    rule_of = FreeFlipping if change == "flipping" else FreePruning
    own = recipe.connectivity
    if own.frozen and own.positive != 0.5:
        raise RecipeError(
            "connectivity.positive: expected 0.5 with connectivity.frozen, whose weights keep the "
            f"signs of the seed, found {own.positive}"
        )
    if own.weight_removal:
        remove_weights(net, into_first=True)
    imbalance_signs(net, own.positive)
    if own.lr is None:
        own = own.replace(lr=rule_of.published_rate(net))
    rule = rule_of(
        net,
        score_optimizer(own),
        minimal=amount == "minimal",
        start=own.start,
        penalty=own.penalty,
        norm=own.norm,
        frozen=Frozen.of(0.0, own.frozen) if own.frozen else None,
    )
    return rule, score_schedule(rule, own, recipe)
