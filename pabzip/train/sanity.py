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
from pabzip.errors import CheckpointError, RecipeError
from pabzip.init import Seeding
from pabzip.seeds import InitSpec, magnitudes, weights
from pabzip.train.build import build_network, held_out
from pabzip.train.config import Recipe, from_dict, merge, method_of
from pabzip.train.pruning import learned_by_scores, search_masks
from pabzip.train.run import train

CHECKS = ("shuffled", "reinitialized", "inverted")
"""The three checks: the mask shuffled within each layer, the same mask over the weights of another
seed, and the mask of the lowest scores."""

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
        rows: the tickets first, then the checks; without inversion where no ticket has scores.
        passed: whether every check was.
    """

    tickets: tuple[str, ...]
    method: str
    epochs: int
    draws: int
    rows: tuple[SanityRow, ...]
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
            were trained, of which the ticket at initialization is taken; nothing is inverted of
            these last, which hold no scores. Several, found by different seeds, tell the spread.
        overrides: of the recipe that a ticket was found by, nested; its method becomes ``sgd``
            unless they say otherwise.
        draws: shuffles, and other seeds, for each ticket.
        splits: the data, already loaded; by default that of the recipe.
        on_run: called as ``on_run(name, accuracy, i, runs)`` after each training, i from 1.

    Raises:
        CheckpointError: a ticket without the recipe that it was found by, or nothing in it that a
            seed drew.
        RecipeError: no ticket, or overrides that do not fit.

    Source: Frankle et al. 2021, Section 5; Rare Gems, Section 4. Shuffling and inversion keep the
    number of weights of each layer, reinitialization the whole mask. The paper does not say whether
    inversion counts over the network or by layer, and the published code only holds the whole
    complement of a mask, switched off. For a ticket of a search, whose scores no file holds, the
    search itself is asked for what it would prune first, over its own scope. The published code
    draws other weights from the Kaiming normal distribution, we from the ticket's own.
    """
    if not tickets or draws < 1:
        raise RecipeError(
            f"sanity checks: expected at least one ticket and one draw, found {len(tickets)} and "
            f"{draws}"
        )
    found = [_read(ticket, overrides or {}) for ticket in tickets]
    runs = sum(1 + 2 * draws + _has_scores(ticket) for ticket, _ in found)
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
    if overrides.get("arch") is not None:
        settings["arch"] = overrides["arch"]
    found = from_dict(settings, allow_import="arch" in overrides)
    recipe = merge(found, {"method": "sgd", **overrides})
    if not method_of(recipe).masked or method_of(recipe).rounds:
        raise RecipeError(
            f"sanity checks: expected a method that trains on a mask, found {recipe.method!r}; "
            "choose another method"
        )
    learned = learned_by_scores(checkpoint)
    return checkpoint if learned else checkpoint.at_initialization(), recipe


def _variants(
    ticket: Checkpoint, recipe: Recipe, splits: Splits, draws: int
) -> Iterator[tuple[str, Checkpoint]]:
    """Yield the ticket, and what the checks make of it, each with its name."""
    drawn = _drawn(ticket, ticket.seed)
    # What the ticket makes of each weight: 1 kept, 0 pruned, -1 flipped, or times a gain.
    factors = {
        name: torch.where(ticket.state_dict[name] != 0, ticket.state_dict[name] / weight, 0.0)
        for name, weight in drawn.items()
    }
    yield "ticket", ticket
    for draw in range(1, draws + 1):
        other = (ticket.seed + draw * _ANOTHER_SEED) % 2**64
        shuffled = {
            name: factor.flatten()[_order(other, ticket.init[name], factor)].view(factor.shape)
            for name, factor in factors.items()
        }
        yield "shuffled", _replaced(ticket, ticket.seed, drawn, shuffled)
        yield "reinitialized", _replaced(ticket, other, _drawn(ticket, other), factors)
    if _has_scores(ticket):
        yield "inverted", _replaced(ticket, ticket.seed, drawn, _lowest(ticket, recipe, splits))


def _has_scores(ticket: Checkpoint) -> bool:
    """Return whether a ticket holds its scores, or names the search that can tell them again."""
    return bool(ticket.scores) or "search" in (ticket.results or {})


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


def _lowest(ticket: Checkpoint, recipe: Recipe, splits: Splits) -> dict[str, Tensor]:
    """Return as many weights as the ticket keeps, of the lowest scores: 1 and 0 by name."""
    kept = {name: ticket.state_dict[name] != 0 for name in ticket.init}
    if not ticket.scores:
        count = sum(int(mask.sum()) for mask in kept.values())
        total = sum(mask.numel() for mask in kept.values())
        # Half a weight more, so that rounding never prunes one less than the ticket keeps.
        others = recipe.replace(keep_ratio=1.0 - (count + 0.5) / total)
        masks = search_masks(build_network(others, splits), others, held_out(others, splits))
        return {name: (~mask).float() for name, mask in masks.items()}
    lowest = {}
    for name, mask in kept.items():
        score = ticket.scores[name]
        if bool((score[mask] < 0).any()):  # ranked by size
            score = score.abs()
        order = _order(ticket.seed, ticket.init[name], score)  # equal scores come at random
        ranked = order[torch.argsort(score.flatten()[order], stable=True)]
        flat = torch.zeros(score.numel())
        flat[ranked[: int(mask.sum())]] = 1.0
        lowest[name] = flat.view(score.shape)
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
