"""What a training step costs under each method, for a run or before one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from pabzip import models
from pabzip.data import geometry
from pabzip.errors import RecipeError
from pabzip.search import synflow
from pabzip.train.bitops import LayerCost, costs_of, count_macs, kept_fractions
from pabzip.train.build import seed_network
from pabzip.train.config import METHODS, Method, PsgRecipe, Recipe, method_of


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

    The corrections of PSG's behavior ``"correct"`` count nothing, as in the paper: how many there
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


@dataclass(frozen=True, slots=True)
class Estimate:
    """The cost of one training step of one sample, by every method.

    Attributes:
        layers: costs by name of the method, as `pabzip.train.method_costs` returns them.
        weights: number of seeded weights.
        survivors: how many of them the search keeps.
    """

    layers: dict[str, list[LayerCost]]
    weights: int
    survivors: int

    @property
    def totals(self) -> dict[str, float]:
        """Bit operations of all layers together, by method."""
        return {name: sum(cost.total for cost in costs) for name, costs in self.layers.items()}


def estimate_costs(
    recipe: Recipe, *, on_iteration: Callable[[int, int], None] | None = None
) -> Estimate:
    """Search a recipe's mask and count what its training step would cost.

    The dataset is only looked up, not read: SynFlow needs no images.

    Args:
        recipe: ``arch``, ``arch_options``, ``data`` (one of `pabzip.data.names`), ``seed``,
            ``scheme``, ``classifier``, ``keep_ratio``, ``search``, ``psg`` and ``drop_ratio``
            matter. Where it searches late or in several shots, which takes training, the mask is
            that of one search at initialization.
        on_iteration: as for `pabzip.search.synflow`.

    Raises:
        RecipeError: another search than SynFlow.
        DataError: the dataset is unknown.
        ArchitectureError: options that do not fit the architecture.
        SearchError: a network that does not take the data's images, or no usable mask.
    """
    search = recipe.search
    if search.method != "synflow":
        raise RecipeError(
            f"search.method: expected synflow, which needs no data, found {search.method!r}; "
            "estimate with synflow, or train and read the cost from the results"
        )
    shape = geometry(recipe.data).input_shape
    net = seed_network(_network(recipe), recipe)
    masks = synflow(
        net,
        recipe.keep_ratio,
        input_shape=shape,
        iterations=search.rounds,
        schedule=search.schedule,
        scope=search.scope,
        dtype=getattr(torch, search.precision),
        on_iteration=on_iteration,
    )
    return Estimate(
        layers=method_costs(net, shape, masks, psg=recipe.psg, drop_ratio=recipe.drop_ratio),
        weights=sum(mask.numel() for mask in masks.values()),
        survivors=sum(int(mask.sum()) for mask in masks.values()),
    )


def _network(recipe: Recipe) -> nn.Module:
    """Build the recipe's architecture for its data."""
    if recipe.own_architecture:
        return models.resolve(recipe.arch, recipe.arch_options, dense_seed=recipe.seed)
    found = geometry(recipe.data)
    options = {
        "num_classes": found.num_classes,
        "in_channels": found.in_channels,
        "image_size": found.image_size,
        **recipe.arch_options,
    }
    return models.build(recipe.arch, options, dense_seed=recipe.seed)
