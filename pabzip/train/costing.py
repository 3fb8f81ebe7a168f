"""Bit operations of the training methods: of the one that a recipe names, and of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from pabzip.train.bitops import LayerCost, costs_of, kept_fractions
from pabzip.train.macs import count_macs
from pabzip.train.methods import METHODS, Method, method_of
from pabzip.train.recipes import PsgRecipe, Recipe


@dataclass(frozen=True, slots=True)
class StepCosts:
    """What one training step of one sample costs, from some epoch of a run on.

    Attributes:
        epoch: the first epoch that it holds for, counted from 1.
        layers: the cost of each layer, from `step_costs`.
        weights: number of seeded weights.
        survivors: how many of them are not pruned.
    """

    epoch: int
    layers: tuple[LayerCost, ...]
    weights: int
    survivors: int

    @property
    def bitops(self) -> float:
        """Bit operations of all layers together."""
        return sum(cost.total for cost in self.layers)

    @property
    def layer_bitops(self) -> dict[str, float]:
        """Bit operations of each layer, by name of its weight."""
        return {cost.name: cost.total for cost in self.layers}


def step_costs(
    net: nn.Module,
    input_shape: tuple[int, ...],
    masks: Mapping[str, torch.Tensor],
    recipe: Recipe,
) -> list[LayerCost]:
    """Return what a recipe's training step costs for one sample, layer by layer.

    Args:
        net: the recipe's network; it stays as it is.
        input_shape: shape of one sample without the batch.
        masks: of every seeded weight, True where it survives; not used by the dense methods.
        recipe: ``method``, ``psg`` and ``drop_ratio`` matter.

    Source: see `pabzip.train.layer_costs`.
    """
    kept, macs = kept_fractions(net, masks), count_macs(net, input_shape)
    return _costs(method_of(recipe), macs, kept, recipe.psg, recipe.drop_ratio)


def method_costs(
    net: nn.Module,
    input_shape: tuple[int, ...],
    masks: Mapping[str, torch.Tensor],
    *,
    psg: PsgRecipe | None = None,
    drop_ratio: float = 0.0,
) -> dict[str, list[LayerCost]]:
    """Return what one training step of one sample costs by each method, layer by layer.

    Args:
        net: any network; it stays as it is.
        input_shape: shape of one sample without the batch.
        masks: of every seeded weight, True where it survives; the dense methods go without.
        psg: bit widths of the methods with predictive gradients; the paper's by default.
        drop_ratio: as for `pabzip.train.layer_costs`.

    Returns:
        The costs by name of the method. A step of ``dense-sgd-short`` costs what one of
        ``dense-sgd`` does: it takes fewer of them.

    Source: Peek-a-Boo, Table 1.
    """
    psg = PsgRecipe() if psg is None else psg
    kept, macs = kept_fractions(net, masks), count_macs(net, input_shape)
    return {
        name: _costs(method_of(Recipe(method=name)), macs, kept, psg, drop_ratio)
        for name in METHODS
    }


def _costs(
    method: Method,
    macs: Mapping[str, int],
    kept: Mapping[str, float] | None,
    psg: PsgRecipe,
    drop_ratio: float,
) -> list[LayerCost]:
    """Return the costs of one method.

    The corrections of PSG's behaviour ``"correct"`` count nothing, as in the paper: how many there
    are depends on the gradients.
    """
    if not method.masked:
        return costs_of(macs, None, drop_ratio=drop_ratio)
    if not method.psg:
        return costs_of(macs, kept, drop_ratio=drop_ratio)
    return costs_of(
        macs, kept,
        input_bits=psg.input_bits, weight_bits=psg.weight_bits, gradient_bits=psg.gradient_bits,
        drop_ratio=drop_ratio,
    )  # fmt: skip
