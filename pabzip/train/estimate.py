"""What a training step would cost, before anything is trained: a search and a count, no data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pabzip import models
from pabzip.data.geometry import geometry
from pabzip.errors import RecipeError
from pabzip.search import synflow
from pabzip.train.bitops import LayerCost
from pabzip.train.costing import method_costs
from pabzip.train.network import seed_network
from pabzip.train.recipes import Recipe

if TYPE_CHECKING:
    from torch import nn


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
        recipe: ``arch``, ``arch_options``, ``data`` (one of `pabzip.data.geometry`), ``seed``,
            ``scheme``, ``classifier``, ``keep_ratio``, ``search``, ``psg`` and ``drop_ratio``
            matter. Where it searches late or in several shots, which takes training, the mask is
            that of one search at initialisation.
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
        shape,
        search.rounds,
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
