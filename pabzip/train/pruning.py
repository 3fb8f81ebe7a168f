"""When and how a run searches its mask."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pabzip.data import AnyImages, Splits, batches
from pabzip.errors import RecipeError
from pabzip.init import seeded_parameters
from pabzip.registry import SEARCHES
from pabzip.train.config import Recipe, method_of

# The last epoch that the data can be ordered for: far beyond any that is trained.
_SAMPLE_EPOCH = 2**30 - 1


@dataclass(frozen=True, slots=True)
class PlannedSearch:
    """One of the searches of a run.

    Attributes:
        epoch: counted from 1, after which it happens; 0 is before the first.
        share: of all that the run prunes, how much is pruned after it, above 0; 1 after the last.
    """

    epoch: int
    share: float = 1.0

    def of(self, keep_ratio: float) -> float:
        """Return the fraction of weights left after it, on the way from 1 to ``keep_ratio``."""
        return keep_ratio if self.share == 1 else 1.0 - (1.0 - keep_ratio) * self.share


AT_ONCE = PlannedSearch(0)
"""All in one search, at initialization."""


def planned_searches(recipe: Recipe) -> tuple[PlannedSearch, ...]:
    """Return the searches of a run, in order.

    Args:
        recipe: ``method``, ``search.epoch`` and ``search.shots`` matter.

    Returns:
        ``search.shots`` searches, spread evenly over the epochs from 0 to ``search.epoch``, after
        which the pruned fraction has risen evenly; a single search happens after
        ``search.epoch``. None for a method that keeps the network dense.

    Source: Peek-a-Boo, Appendix C (Figure 5 for the epoch, Table 4 for several shots).
    """
    if not method_of(recipe).masked:
        return ()
    shots, last = recipe.search.shots, recipe.search.epoch
    earlier = [PlannedSearch(last * i // (shots - 1), (i + 1) / shots) for i in range(shots - 1)]
    return (*earlier, PlannedSearch(last))


def search_masks(
    net: nn.Module,
    recipe: Recipe,
    splits: Splits,
    planned: PlannedSearch = AT_ONCE,
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
        recipe: ``search``, ``keep_ratio``, ``seed`` and ``batch_size`` matter.
        splits: the data; its training images serve SNIP and GraSP, its image size the others.
        planned: which of the recipe's searches this is; it says how far to prune, every weight its
            own way where weights have ratios of their own.
        on_iteration: called as ``on_iteration(i, iterations)`` after each round, i from 1.
            Searches whose scores do not depend on what is pruned have none.

    Returns:
        The masks by name: bool, of the weight's shape, on its device.

    Raises:
        SearchError: no usable mask was found; the message names the layer.
        RecipeError: more samples asked for than the data has, or ratios for weights that the
            network has not.
        SeedError: ``net`` was not drawn from a seed.
    """
    settings, keep_ratio = recipe.search, planned.of(recipe.keep_ratio)
    input_shape = (splits.in_channels, splits.image_size, splits.image_size)
    facts = SEARCHES.facts(settings.method)
    own: dict[str, Any] = {}
    if facts.get("needs_data"):
        own["example_inputs"] = _samples(net, recipe, splits.train)
    elif "dtype" in facts.get("takes", ()):
        own["dtype"] = getattr(torch, settings.precision)
    if "ratios" in facts.get("takes", ()):
        own["ratios"] = {name: planned.of(ratio) for name, ratio in _ratios(net, recipe).items()}
    masks: dict[str, Tensor] = SEARCHES.get(settings.method)(
        net, keep_ratio, input_shape=input_shape, iterations=settings.rounds,
        schedule=settings.schedule, scope=settings.scope, seed=recipe.seed,
        on_iteration=on_iteration, **own,
    )  # fmt: skip
    return masks


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


def _ratios(net: nn.Module, recipe: Recipe) -> dict[str, float]:
    """Return the keep ratio of each weight, as the recipe has it for the end."""
    own, weights = recipe.search.ratios, list(seeded_parameters(net))
    for name in own:
        if name not in weights:
            close = difflib.get_close_matches(name, weights, n=1, cutoff=0.0)
            raise RecipeError(
                f"search.ratios: expected names of the weights that {recipe.arch} draws from its "
                f"seed, found {name!r}; did you mean {close[0]}?"
            )
    return {**dict.fromkeys(weights, recipe.keep_ratio), **own}
