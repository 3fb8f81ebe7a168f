"""Sanity checks of a found ticket: does it train better than with another mask or other weights?"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pabzip.checkpoint import Checkpoint, load_checkpoint
from pabzip.data import Splits, load
from pabzip.errors import CheckpointError, RecipeError, SearchError
from pabzip.init import Seeding, selected
from pabzip.registry import SEARCHES
from pabzip.search import prune_groups
from pabzip.seeds import Frozen, InitSpec, magnitudes, weights
from pabzip.train.build import build_network, held_out
from pabzip.train.config import Recipe, from_dict, merge, method_of
from pabzip.train.pruning import learned_by_scores, search_masks
from pabzip.train.run import train

CHECKS = ("shuffled", "reinitialized", "inverted")
"""The three checks: what becomes of the weights (pruned, kept or flipped) shuffled within each
layer, the same mask and flips over the weights of another seed, and the mask of the lowest scores.
"""

_ANOTHER_SEED = 2**32


@dataclass(frozen=True, slots=True)
class SanityRow:
    """How the tickets, or what one check makes of them, train.

    Attributes:
        name: ``"ticket"`` or one of `CHECKS`.
        accuracies: on the test images, one a run.
        mean: of them.
        deviation: standard deviation of one run; None for a single run.
        drop: how far the mean lies below the tickets'; 0 for themselves.
        margin: what the drop has to exceed: twice the standard error of the difference.
        passed: whether it does; None for the tickets themselves.
    """

    name: str
    accuracies: tuple[float, ...]
    mean: float
    deviation: float | None
    drop: float
    margin: float
    passed: bool | None


@dataclass(frozen=True, slots=True)
class SanityResult:
    """What the checks of some tickets found: the keys of ``pabzip bench sanity --json``.

    Attributes:
        tickets: their files.
        method: by which each variant was trained.
        epochs: of each training.
        draws: shuffles and seeds for each ticket.
        rows: the tickets first, then the checks; without inversion where no ticket has any.
        remarks: what of the tickets is not as it is for others, such as why one is not inverted.
        passed: whether every check was.
    """

    tickets: tuple[str, ...]
    method: str
    epochs: int
    draws: int
    rows: tuple[SanityRow, ...]
    remarks: tuple[str, ...]
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the results by name."""
        return asdict(self)


def sanity_checks(
    tickets: Sequence[str | os.PathLike[str]],
    overrides: Mapping[str, Any] | None = None,
    *,
    draws: int = 1,
    splits: Splits | None = None,
    on_run: Callable[[str, float, int, int], None] | None = None,
) -> SanityResult:
    """Train tickets and what the three sanity checks make of them, all by the same recipe.

    A ticket passes a check if its accuracy deteriorates significantly: by more than twice the
    standard error of the difference of the means, of which the runs tell the variance, but never
    less than that of so many test images. If it does not, the search found no more than how many
    weights each layer needs.

    Args:
        tickets: checkpoints of score methods, of `find_ticket`, or of networks whose magnitudes
            were trained, of which the ticket at initialization is taken. Several, found by
            different seeds, tell the spread.
        overrides: of the recipe that a ticket was found by, nested; its method becomes ``sgd``
            unless they say otherwise.
        draws: shuffles, and other seeds, for each ticket.
        splits: the data, already loaded; by default that of the recipe.
        on_run: called as ``on_run(name, accuracy, i, runs)`` after each training, i from 1.

    Raises:
        CheckpointError: a ticket without the recipe that it was found by, with nothing in it that a
            seed drew, or that neither prunes nor flips a weight.
        RecipeError: no ticket, or overrides that do not fit.
        SearchError: a search that does not prune as many weights as it is asked to.

    Shuffling keeps the number of weights of each layer, and of flips, reinitialization the whole
    mask and all flips. Where nothing is pruned, it is the flips alone that are shuffled. The other
    seed also decides the order of the data and, for tickets that no scores found, the first values
    of dense parameters. Inversion keeps as many weights as the ticket does, of the lowest scores:
    of each layer where a score method found it, and what the seed froze stays; of a ticket of a
    search, whose scores no file holds, those that the search would prune first, in number as its
    scope has it, and what it skipped stays whole. Tickets that prune nothing, or that flip beside
    pruning, are not inverted, nor are those of random searches and of trained networks. Of
    magnitude pruning that does not rewind to the weights as drawn (``imp.rewind_epoch`` above 0,
    ``imp.rewind = "rate"``) the mask is tried over the weights as drawn all the same. `remarks`
    tell where any of this is so.

    Source: Frankle et al. 2021, Section 5; Rare Gems, Section 4. The paper does not say whether
    inversion counts over the network or by layer, and the published code only holds the whole
    complement of a mask, switched off. The published code draws other weights from the Kaiming
    normal distribution, we from the ticket's own.
    """
    if not tickets or draws < 1:
        raise RecipeError(
            f"sanity checks: expected at least one ticket and one draw, found {len(tickets)} and "
            f"{draws}"
        )
    found = [_read(ticket, overrides or {}) for ticket in tickets]
    runs = sum(1 + 2 * draws + (_not_inverted(*each) is None) for each in found)
    accuracies: dict[str, list[float]] = {name: [] for name in ("ticket", *CHECKS)}
    images = 0
    with tempfile.TemporaryDirectory() as folder:
        for ticket, recipe in found:
            data = splits or load(recipe.data, root=recipe.data_root)
            images = len(data.test)
            for name, variant in _variants(ticket, recipe, data, draws):
                trained = train(
                    recipe.replace(seed=variant.seed),
                    output=Path(folder) / "model.pt",
                    splits=data,
                    ticket=variant,
                )
                accuracies[name].append(trained.test_accuracy)
                if on_run is not None:
                    done = sum(map(len, accuracies.values()))
                    on_run(name, trained.test_accuracy, done, runs)
    rows = [_row(name, accuracies, images) for name, own in accuracies.items() if own]
    return SanityResult(
        tickets=tuple(os.fspath(ticket) for ticket in tickets),
        method=found[0][1].method,
        epochs=found[0][1].epochs,
        draws=draws,
        rows=tuple(rows),
        remarks=tuple(
            f"{os.fspath(path)}: {remark}"
            for path, (ticket, recipe) in zip(tickets, found, strict=True)
            for remark in _remarks(ticket, recipe)
        ),
        passed=all(row.passed is not False for row in rows),
    )


def _read(
    ticket: str | os.PathLike[str], overrides: Mapping[str, Any]
) -> tuple[Checkpoint, Recipe]:
    """Return a ticket at initialization, and the recipe that trains it."""
    checkpoint = load_checkpoint(ticket)
    if checkpoint.settings is None or not (checkpoint.init or checkpoint.drawn):
        raise CheckpointError(
            f"{os.fspath(ticket)}: expected a ticket with the recipe that it was found by and the "
            "seed of its weights, found none; find it by `pabzip train`"
        )
    settings = dict(checkpoint.settings)
    given = {key: value for key, value in overrides.items() if value is not None}
    if "arch" in given:
        settings["arch"] = given["arch"]
    found = from_dict(settings, allow_import="arch" in given)
    recipe = merge(found, {"method": "sgd", **given})
    if not method_of(recipe).masked or method_of(recipe).rounds:
        raise RecipeError(
            f"sanity checks: expected a method that trains on a mask, found {recipe.method!r}; "
            "choose another method"
        )
    if not learned_by_scores(checkpoint):
        checkpoint = checkpoint.at_initialization()
    if all(bool((factor == 1).all()) for factor in _factors(checkpoint).values()):
        raise CheckpointError(
            f"{os.fspath(ticket)}: expected a ticket that prunes or flips weights, found all as "
            "the seed draws them; find one with a lower keep ratio"
        )
    return checkpoint, recipe


def _variants(
    ticket: Checkpoint, recipe: Recipe, splits: Splits, draws: int
) -> Iterator[tuple[str, Checkpoint]]:
    """Yield the ticket, and what the checks make of it, each with its name."""
    drawn, factors = _drawn(ticket, ticket.seed), _factors(ticket)
    yield "ticket", ticket
    for draw in range(1, draws + 1):
        other = (ticket.seed + draw * _ANOTHER_SEED) % 2**64
        shuffled = {
            name: factor.flatten()[_order(other, ticket.init[name], factor)].view(factor.shape)
            for name, factor in factors.items()
        }
        yield "shuffled", _replaced(ticket, ticket.seed, drawn, shuffled)
        yield "reinitialized", _replaced(ticket, other, _drawn(ticket, other), factors)
    if _not_inverted(ticket, recipe) is None:
        lowest = _lowest(ticket) if ticket.scores else _pruned_first(ticket, recipe, splits)
        yield "inverted", _replaced(ticket, ticket.seed, drawn, lowest)


def _not_inverted(ticket: Checkpoint, recipe: Recipe) -> str | None:
    """Return why a ticket cannot be inverted; None if it can."""
    factors = _factors(ticket).values()
    if all(bool((factor != 0).all()) for factor in factors):
        return "it prunes nothing"
    if any(bool((factor < 0).any()) for factor in factors):
        return "it flips signs beside pruning, and holds none of what it pruned"
    if ticket.scores:
        return None
    if "search" not in (ticket.results or {}):
        return "it holds no scores"
    if SEARCHES.facts(recipe.search.method).get("at_random"):
        return f"{recipe.search.method} chose at random"
    return None


def _remarks(ticket: Checkpoint, recipe: Recipe) -> Iterator[str]:
    """Yield what is not with this ticket as it is with others."""
    reason = _not_inverted(ticket, recipe)
    if reason is not None:
        yield f"not inverted, since {reason}"
    if all(bool((factor != 0).all()) for factor in _factors(ticket).values()):
        yield "nothing is pruned, so what is shuffled are its flips"
    settings = ticket.settings or {}
    if settings.get("method") == "imp":
        imp = settings.get("imp", {})
        if imp.get("rewind") == "rate":
            yield "its rounds never went back; tried is its mask over the weights as drawn"
        elif imp.get("rewind_epoch"):
            yield (
                f"its rounds went back to epoch {imp['rewind_epoch']}; tried is its mask over the "
                "weights as drawn"
            )


def _factors(ticket: Checkpoint) -> dict[str, Tensor]:
    """Return what a ticket makes of each weight: 1 kept, 0 pruned, -1 flipped, or times a gain."""
    return {
        name: torch.where(ticket.state_dict[name] != 0, ticket.state_dict[name] / weight, 0.0)
        for name, weight in _drawn(ticket, ticket.seed).items()
    }


def _drawn(ticket: Checkpoint, seed: int) -> dict[str, Tensor]:
    """Return the weights that a seed draws for the ticket's network, by name."""
    shapes = {name: ticket.state_dict[name].shape for name in ticket.init}
    return {
        name: torch.from_numpy(weights(seed, spec, 0, shapes[name].numel())).view(shapes[name])
        for name, spec in ticket.init.items()
    }


def _order(seed: int, spec: InitSpec, tensor: Tensor) -> Tensor:
    """Return a random order of a tensor's elements, the same on every machine."""
    words = magnitudes(seed, replace(spec, distribution="uniform", scale=1.0), 0, tensor.numel())
    return torch.from_numpy(np.argsort(words, kind="stable"))


def _lowest(ticket: Checkpoint) -> dict[str, Tensor]:
    """Return as many weights as each layer keeps, of the lowest scores: 1 and 0 by name.

    What the seed prunes or keeps for good, and no score decides, stays as it is.
    """
    lowest = {}
    for name, spec in ticket.init.items():
        mask, score = (ticket.state_dict[name] != 0).flatten(), ticket.scores[name].flatten()
        if bool((score[mask] < 0).any()):  # ranked by size
            score = score.abs()
        # Equal scores come at random, by words that drew no weight of the ticket.
        order = _order((ticket.seed - _ANOTHER_SEED) % 2**64, spec, score)
        part = ticket.seeding.frozen.get(name, Frozen(0, 0))
        learned = torch.from_numpy(part.marks(ticket.seed, spec.stream, 0, len(score)) == 0)
        order = order[learned[order]]
        ranked = order[torch.argsort(score[order], stable=True)]
        flat = (mask & ~learned).float()
        flat[ranked[: int((mask & learned).sum())]] = 1.0
        lowest[name] = flat.view(ticket.state_dict[name].shape)
    return lowest


def _pruned_first(ticket: Checkpoint, recipe: Recipe, splits: Splits) -> dict[str, Tensor]:
    """Return as many weights as the ticket keeps, which its search would prune first: 1 and 0.

    Over the network or of each layer, as the scope of the search has it; what it skipped is whole.
    """
    kept = {name: ticket.state_dict[name] != 0 for name in ticket.init}
    lowest = {name: mask.float() for name, mask in kept.items()}
    images = held_out(recipe, splits)
    searched = selected(build_network(recipe, splits), skip=recipe.search.skip or None)
    counts = {
        group.names: sum(int(kept[name].sum()) for name in group.names)
        for group in prune_groups(searched, recipe.keep_ratio, recipe.search.scope)
    }
    sizes = {names: sum(kept[name].numel() for name in names) for names in counts}
    left = [names for names in counts if counts[names] < sizes[names]]  # the others stay whole
    while left:
        # Half a weight more, so that rounding never prunes one less than the ticket keeps. Layers
        # whose own rounding comes out differently have another search.
        others = recipe.replace(keep_ratio=1.0 - (counts[left[0]] + 0.5) / sizes[left[0]])
        masks = search_masks(build_network(others, splits), others, images)
        done = [
            names
            for names in left
            if sum(int((~masks[name]).sum()) for name in names) == counts[names]
        ]
        if left[0] not in done:
            raise SearchError(
                f"{recipe.search.method}: expected a search that prunes {counts[left[0]]} of the "
                f"{sizes[left[0]]} weights of {left[0][0]!r}, found another number; register it "
                "with at_random=True if its scores are random"
            )
        lowest |= {name: (~masks[name]).float() for names in done for name in names}
        left = [names for names in left if names not in done]
    return lowest


def _replaced(
    ticket: Checkpoint, seed: int, drawn: Mapping[str, Tensor], factors: Mapping[str, Tensor]
) -> Checkpoint:
    """Return the ticket with other weights; a pruned weight is +0.0."""
    state = dict(ticket.state_dict)
    state |= {name: weight * factors[name] + 0.0 for name, weight in drawn.items()}
    return replace(ticket, state_dict=state, seeding=Seeding(seed, ticket.init))


def _row(name: str, accuracies: Mapping[str, Sequence[float]], images: int) -> SanityRow:
    """Return one row of the result."""
    own, tickets = accuracies[name], accuracies["ticket"]
    drop = statistics.fmean(tickets) - statistics.fmean(own)
    margin = 2 * math.hypot(_standard_error(tickets, images), _standard_error(own, images))
    return SanityRow(
        name=name,
        accuracies=tuple(own),
        mean=statistics.fmean(own),
        deviation=statistics.stdev(own) if len(own) > 1 else None,
        drop=drop,
        margin=margin,
        passed=None if name == "ticket" else drop > margin,
    )


def _standard_error(accuracies: Sequence[float], images: int) -> float:
    """Return that of their mean: from their variance, or the test images' if that is more."""
    mean = statistics.fmean(accuracies)
    variance = mean * (1.0 - mean) / images
    if len(accuracies) > 1:
        variance = max(variance, statistics.variance(accuracies))
    return math.sqrt(variance / len(accuracies))
