"""Tickets found in one run and trained in another: `--search-only` and `--ticket`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from pabzip import data
from pabzip.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pabzip.data import Splits
from pabzip.errors import CheckpointError, RecipeError
from pabzip.formats.atomic import open_atomic
from pabzip.init import seeded_parameters, seeding
from pabzip.search import apply_masks
from pabzip.train.build import build_network, isolated, pick_device
from pabzip.train.config import Recipe, method_of, settled, to_dict
from pabzip.train.cost import StepCosts, step_costs
from pabzip.train.pruning import AT_ONCE, PlannedSearch, planned_searches, search_masks


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A search without training, as its checkpoint and ``pabzip train --search-only`` tell it.

    Attributes:
        arch: the recipe's architecture.
        data: the recipe's dataset.
        search: the recipe's ``search.method``.
        keep_ratio: the recipe's keep ratio.
        epochs: 0, since nothing was trained.
        weights: number of seeded weights (N).
        survivors: number of them that the mask kept (K).
        bitops: bit operations of one training step of one sample by the recipe's method, as in
            `TrainResult`.
        layer_bitops: the part of each layer in it, by parameter name of the layer's weight.
        seed: the recipe's seed.
        output: path of the checkpoint.
        seconds: wall-clock time.
    """

    arch: str
    data: str
    search: str
    keep_ratio: float
    epochs: int
    weights: int
    survivors: int
    bitops: float
    layer_bitops: dict[str, float]
    seed: int
    output: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the results by name."""
        return dataclasses.asdict(self)


def find_ticket(
    recipe: Recipe,
    *,
    output: str | os.PathLike[str] = "found.pt",
    splits: Splits | None = None,
    download: bool = False,
    on_iteration: Callable[[int, int], None] | None = None,
) -> SearchResult:
    """Draw a network, search its mask, and write the ticket as a checkpoint, untrained.

    The caller's random states, default dtype, gradient mode and threads are left as they were.

    Args:
        recipe: as for `pabzip.train.train`; all that decides network and search matters.
        output: path of the checkpoint, written whole at the end.
        splits: the data, already loaded; by default ``recipe.data`` is loaded.
        download: fetch a dataset that is missing.
        on_iteration: called as ``on_iteration(i, iterations)`` after each round of the search.

    Returns:
        The results, which also travel in the checkpoint.

    Raises:
        RecipeError: a recipe that does not search at initialization alone.
        SearchError: the search found no usable mask.
        ArchitectureError, DataError, OSError: as `pabzip.train.train`.

    Source: Peek-a-Boo, Section 4.3 (ImageNet), whose search and training are two programs.
    """
    begun = perf_counter()
    planned = planned_searches(recipe)
    if not planned:
        raise RecipeError(
            f"a search without training: expected a method that trains on a mask, found "
            f"{recipe.method!r}; choose another method"
        )
    if planned != (AT_ONCE,):
        raise RecipeError(
            "a search without training: expected one search, at initialization, found "
            f"search.epoch = {recipe.search.epoch} and search.shots = {recipe.search.shots}; set "
            "search.epoch = 0 and search.shots = 1"
        )
    device = pick_device(recipe.device)
    with isolated(recipe.seed, device), open_atomic(output) as file:
        if splits is None:
            splits = data.load(recipe.data, root=recipe.data_root, download=download)
        net = build_network(recipe, splits).to(device)
        masks = search_masks(net, recipe, splits, on_iteration=on_iteration)
        costs = StepCosts(
            epoch=1,
            layers=tuple(step_costs(net, splits.input_shape, masks, recipe)),
            weights=sum(mask.numel() for mask in masks.values()),
            survivors=sum(int(mask.sum()) for mask in masks.values()),
        )
        result = SearchResult(
            arch=recipe.arch,
            data=recipe.data,
            search=recipe.search.method,
            keep_ratio=recipe.keep_ratio,
            epochs=0,
            weights=costs.weights,
            survivors=costs.survivors,
            bitops=costs.bitops,
            layer_bitops=costs.layer_bitops,
            seed=recipe.seed,
            output=os.fspath(output),
            seconds=perf_counter() - begun,
        )
        save_checkpoint(net, file, settings=to_dict(recipe), results=result.to_dict())
    return result


def apply_ticket(
    net: nn.Module, recipe: Recipe, ticket: str | os.PathLike[str] | Checkpoint
) -> dict[str, Tensor]:
    """Prune a freshly built network to a ticket that `find_ticket` wrote, in place of a search.

    Args:
        net: from `pabzip.train.build_network` for ``recipe``, on any device.
        recipe: what is to be trained. All that decides the ticket must be as it was for the
            search: architecture, seed, init, keep ratio and the search's own settings.
        ticket: path of the checkpoint, or the checkpoint.

    Returns:
        The masks by name, as `search_masks` returns them: bool, of the weight's shape, on its
        device. They are applied.

    Raises:
        CheckpointError: the file is no checkpoint, or of another network or recipe; the message
            shows every difference, ``here`` being the recipe. ``net`` is then as it was.
        OSError: the file cannot be opened.
    """
    if isinstance(ticket, Checkpoint):
        place, checkpoint = "the ticket", ticket
    else:
        place, checkpoint = os.fspath(ticket), load_checkpoint(ticket)
    found = [
        f"{key}: {_short(there)} there, {_short(here)} here"
        for key, there, here in _differences(net, recipe, checkpoint)
    ]
    if found:
        raise CheckpointError(
            f"{place}: expected the ticket of this recipe, found differences: {'; '.join(found)}; "
            "train it with the recipe it was found with, or search again"
        )
    weights = seeded_parameters(net)
    masks = {name: checkpoint.state_dict[name] != 0 for name in weights}
    _refuse_trained(place, weights, masks, checkpoint)
    masks = {name: mask.to(weights[name].device) for name, mask in masks.items()}
    apply_masks(net, masks)
    return masks


def _differences(
    net: nn.Module, recipe: Recipe, checkpoint: Checkpoint
) -> Iterator[tuple[str, object, object]]:
    """Yield what differs between a checkpoint and a recipe: a key and both values."""
    arch, options = getattr(net, "pabzip_arch", ("custom", {}))
    pairs: dict[str, tuple[object, object]] = {"arch": (checkpoint.arch, arch)}
    pairs |= _paired("arch_options.", checkpoint.arch_options, options)
    pairs["seed"] = (checkpoint.seed, seeding(net).seed)
    pairs |= _paired("init.", checkpoint.init, seeding(net).specs)
    weights = seeded_parameters(net)
    for name, weight in weights.items():
        if name in checkpoint.state_dict:
            shape = list(checkpoint.state_dict[name].shape)
            pairs[f"shape of {name}"] = (shape, list(weight.shape))
    here, there = to_dict(recipe), checkpoint.settings
    if there is None:
        pairs["recipe"] = (None, "a recipe")
    else:
        pairs["keep_ratio"] = (there.get("keep_ratio"), here["keep_ratio"])
        searched = there.get("search")
        if recipe.search.method in ("snip", "grasp"):
            pairs |= {key: (there.get(key), here[key]) for key in ("data", "batch_size")}
        before = settled(searched) if isinstance(searched, Mapping) else {}
        pairs |= _paired("search.", before, settled(here["search"]))
    for key, (one, other) in pairs.items():
        if one != other:
            yield key, one, other


def _paired(
    prefix: str, there: Mapping[str, Any], here: Mapping[str, Any]
) -> dict[str, tuple[object, object]]:
    """Return the values of both mappings by every key of either."""
    return {f"{prefix}{key}": (there.get(key), here.get(key)) for key in {**here, **there}}


def _refuse_trained(
    place: str,
    weights: Mapping[str, nn.Parameter],
    masks: Mapping[str, Tensor],
    checkpoint: Checkpoint,
) -> None:
    """Refuse a ticket whose survivors are not as the seed drew them."""
    for name, weight in weights.items():
        drawn = weight.detach().cpu()
        stored = checkpoint.state_dict[name]
        moved = int(torch.count_nonzero((stored != drawn) & masks[name]))
        if moved:
            raise CheckpointError(
                f"{place}: {name}: expected survivors as the seed draws them, found {moved} of "
                f"{int(masks[name].sum())} that differ: it was trained on already; pass the "
                "ticket that the search wrote"
            )


def _short(value: object) -> str:
    """Return a value for a message."""
    return "nothing" if value is None else str(value)


class TicketFinder:
    """Prunes networks as a recipe says, or to a ticket.

    Args:
        recipe: as for `search_masks` and `apply_ticket`.
        splits: the data.
        ticket: path of a ticket of `pabzip.train.find_ticket`, in place of a search; or None.

    Raises:
        RecipeError: a ticket for a method that has no use for it.
    """

    def __init__(self, recipe: Recipe, splits: Splits, ticket: str | os.PathLike[str] | None):
        method = method_of(recipe)
        if ticket is not None and not (method.masked or method.short):
            raise RecipeError(
                "a found ticket: expected a method that trains on a mask, found "
                f"{recipe.method!r}; leave the ticket out, or choose another method"
            )
        self._recipe, self._splits, self._ticket = recipe, splits, ticket

    def __call__(
        self,
        net: nn.Module,
        planned: PlannedSearch = AT_ONCE,
        on_iteration: Callable[[int, int], None] | None = None,
    ) -> dict[str, Tensor]:
        """Prune ``net`` and return its masks by name, bool, on the CPU.

        Args:
            net: drawn from the recipe's seed, on any device.
            planned: which of the run's searches this is.
            on_iteration: as for `search_masks`; a ticket has none.

        Raises:
            SearchError, RecipeError, CheckpointError: as `search_masks` and `apply_ticket`.
        """
        if self._ticket is not None:
            masks = apply_ticket(net, self._recipe, self._ticket)
        else:
            masks = search_masks(
                net, self._recipe, self._splits, planned, on_iteration=on_iteration
            )
        return {name: mask.cpu() for name, mask in masks.items()}
