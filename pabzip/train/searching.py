"""The searches of a run: when they happen, and how each finds its masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pabzip import search
from pabzip.data import AnyImages, Splits, batches
from pabzip.errors import RecipeError
from pabzip.init import seeded_parameters
from pabzip.train.methods import method_of
from pabzip.train.recipes import Recipe

# The last epoch that the data can be ordered for: far beyond any that is trained.
_SAMPLE_EPOCH = 2**30 - 1


def planned_searches(recipe: Recipe) -> tuple[tuple[int, float], ...]:
    """Return when the searches of a run happen, and how much each leaves.

    Args:
        recipe: ``method``, ``keep_ratio``, ``search.epoch`` and ``search.shots`` matter.

    Returns:
        Pairs of an epoch, counted from 1, after which a search happens (0 is before the first),
        and the fraction of the weights that it leaves, both in order. ``search.shots`` searches
        are spread evenly from 0 to ``search.epoch``, and the pruned fraction rises linearly to
        ``1 - keep_ratio``; a single search happens after ``search.epoch``. Nothing for a method
        that keeps the network dense.

    Source: Peek-a-Boo, Appendix C (Figure 5 for the epoch, Table 4 for several shots).
    """
    if not method_of(recipe).masked:
        return ()
    shots, last = recipe.search.shots, recipe.search.epoch
    if shots == 1:
        return ((last, recipe.keep_ratio),)
    pruned = 1.0 - recipe.keep_ratio
    earlier = [(last * i // (shots - 1), 1.0 - pruned * (i + 1) / shots) for i in range(shots - 1)]
    return (*earlier, (last, recipe.keep_ratio))


def search_masks(
    net: nn.Module,
    recipe: Recipe,
    keep_ratio: float,
    splits: Splits,
    *,
    on_iteration: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Search the seeded weights of ``net`` as a recipe says, and apply the masks.

    Goes on from the weights that are pruned already. Nothing of ``net`` changes but the weights
    that are pruned now, which become +0.0; predictive gradients on it play no part. SNIP and
    GraSP see the same images at every search of a run, a random choice by the recipe's seed,
    without augmentation. On a CPU the masks are a function of the weights and of the arguments.

    Args:
        net: a network drawn from a seed, on the device that is to search.
        recipe: ``search``, ``seed`` and ``batch_size`` matter, and ``keep_ratio`` where
            ``search.ratios`` are given.
        keep_ratio: fraction of the seeded weights that this search leaves, one of
            `planned_searches`. Where weights have ratios of their own, these are reached when
            ``keep_ratio`` reaches the recipe's, and linearly before.
        splits: the data; its training images serve SNIP and GraSP, its image size the others.
        on_iteration: called as ``on_iteration(i, iterations)`` after each round, i from 1.
            Searches whose scores do not depend on what is pruned have none.

    Returns:
        The masks by name: bool, of the weight's shape, on its device.

    Raises:
        SearchError: no usable mask was found; the message names the layer.
        RecipeError: more samples asked for than the data has.
        SeedError: ``net`` was not drawn from a seed.
    """
    settings = recipe.search
    input_shape = (splits.in_channels, splits.image_size, splits.image_size)
    rounds: dict[str, Any] = {
        "iterations": settings.rounds,
        "schedule": settings.schedule,
        "scope": settings.scope,
        "on_iteration": on_iteration,
    }
    match settings.method:
        case "synflow":
            dtype = getattr(torch, settings.precision)
            return search.synflow(net, keep_ratio, input_shape, dtype=dtype, **rounds)
        case "snip":
            return search.snip(net, keep_ratio, _samples(net, recipe, splits.train), **rounds)
        case "grasp":
            return search.grasp(net, keep_ratio, _samples(net, recipe, splits.train), **rounds)
        case "magnitude":
            return search.magnitude(net, keep_ratio, input_shape, scope=settings.scope)
        case "random":
            return search.random(
                net, keep_ratio, input_shape, seed=recipe.seed, scope=settings.scope
            )
        case "layerwise-random":
            ratios = _ratios(net, recipe, keep_ratio)
            return search.layerwise_random(net, ratios, input_shape, seed=recipe.seed)
        case method:
            raise RecipeError(f"search.method: expected a known method, found {method!r}")


def _samples(net: nn.Module, recipe: Recipe, images: AnyImages) -> list[tuple[Tensor, Tensor]]:
    """Return the images that SNIP and GraSP measure on, in batches of nearly equal size."""
    wanted = recipe.search.samples
    if wanted > len(images):
        raise RecipeError(
            f"search.samples: expected at most the {len(images)} training images of the data, "
            f"found {wanted}"
        )
    device = next(iter(seeded_parameters(net).values())).device
    parts: list[tuple[Tensor, Tensor]] = []
    walk = batches(
        images, min(recipe.batch_size, wanted), shuffle_seed=recipe.seed, epoch=_SAMPLE_EPOCH,
        device=device,
    )  # fmt: skip
    while sum(len(labels) for _, labels in parts) < wanted:
        parts.append(next(walk))
    inputs, labels = (torch.cat(part)[:wanted] for part in zip(*parts, strict=True))
    # Of nearly equal size, so that batch norm never meets a last batch of a single image.
    count = math.ceil(wanted / recipe.batch_size)
    halves = inputs.tensor_split(count), labels.tensor_split(count)
    return list(zip(*halves, strict=True))


def _ratios(net: nn.Module, recipe: Recipe, keep_ratio: float) -> Mapping[str, float]:
    """Return the keep ratio of each weight, on the way to the recipe's."""
    own = recipe.search.ratios
    ratios = {**dict.fromkeys(seeded_parameters(net), recipe.keep_ratio), **own}
    if keep_ratio == recipe.keep_ratio:
        return ratios
    progress = (1.0 - keep_ratio) / (1.0 - recipe.keep_ratio)
    return {name: 1.0 - (1.0 - ratio) * progress for name, ratio in ratios.items()}
