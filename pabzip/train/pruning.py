"""When and how a run searches its mask, and tickets that another run found.

`planned_searches` says when, and `search_masks` does one search. `apply_ticket` applies what
`pabzip.train.find_ticket` found and wrote as a checkpoint, in place of a search, and
`estimate_costs` says what training on a search's masks would cost.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pabzip.checkpoint import Checkpoint, load_checkpoint
from pabzip.data import AnyImages, Splits, batches, geometry
from pabzip.data.registry import Geometry
from pabzip.errors import CheckpointError, RecipeError
from pabzip.init import Seeding, attach_seeding, seeded_parameters, seeding, selected
from pabzip.registry import METHODS, SEARCHES
from pabzip.search import apply_masks, magnitude
from pabzip.train.build import build_network
from pabzip.train.config import Recipe, comparable, flat, method_of
from pabzip.train.cost import method_costs
from pabzip.train.distributed import digest
from pabzip.train.results import LayerCost

# The last epoch that the data can be ordered for: far beyond any that is trained.
_SAMPLE_EPOCH = 2**30 - 1


@dataclass(frozen=True, slots=True)
class PlannedSearch:
    """One of the searches of a run.

    Attributes:
        epoch: counted from 1, after which it happens; 0 is before the first.
        share: of all that the run prunes, how much is pruned after it, above 0; 1 after the last.
        factor: whether each search prunes by the same factor, rather than by as many weights.
    """

    epoch: int
    share: float = 1.0
    factor: bool = False

    def of(self, keep_ratio: float) -> float:
        """Return the fraction of weights left after it, on the way from 1 to ``keep_ratio``."""
        if self.factor:
            return float(keep_ratio**self.share)
        return keep_ratio if self.share == 1 else 1.0 - (1.0 - keep_ratio) * self.share


AT_ONCE = PlannedSearch(0)
"""All in one search, at initialization."""


def planned_searches(recipe: Recipe) -> tuple[PlannedSearch, ...]:
    """Return the searches of a run, in order; none for a method that keeps the network dense.

    Each of ``search.shots`` is one ``search.epoch // search.shots`` epochs after the one before,
    the first as long after initialization, and the pruned fraction rises evenly with them; a single
    one happens after ``search.epoch``. A method that has rounds searches at the end of each.

    Source: Peek-a-Boo, Appendix C (Figure 5 for the epoch, Table 4 for several shots), and its
    code, whose five shots within 50 epochs follow epochs 10, 20, 30, 40 and 50, three follow 16, 32
    and 48.
    """
    if not method_of(recipe).masked:
        return ()
    if method_of(recipe).rounds:
        rounds, length = recipe.imp.rounds, recipe.imp.round_epochs
        return tuple(
            PlannedSearch(length * i, i / rounds, factor=True) for i in range(1, rounds + 1)
        )
    shots = recipe.search.shots
    interval = recipe.search.epoch // shots
    return tuple(PlannedSearch(interval * i, i / shots) for i in range(1, shots + 1))


def search_masks(
    net: nn.Module,
    recipe: Recipe,
    splits: Splits | Geometry,
    planned: PlannedSearch = AT_ONCE,
    *,
    on_iteration: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Search the seeded weights of ``net`` as a recipe says, and apply the masks.

    A method that has rounds keeps the largest weights, over the whole network.

    Goes on from the weights that are pruned already. Nothing of ``net`` changes but the weights
    that are pruned now, which become +0.0; predictive gradients on it play no part. SNIP and
    GraSP see the same images at every search of a run, a random choice by the recipe's seed,
    without augmentation. On a CPU the masks are a function of the weights and of the arguments.

    Args:
        net: a network drawn from a seed, on the device that is to search.
        recipe: ``search``, ``keep_ratio``, ``seed`` and ``batch_size`` matter.
        splits: the data; its training images serve SNIP and GraSP, its image size is enough for
            the others.
        planned: which of the recipe's searches this is; it says how far to prune, every weight its
            own way where weights have ratios of their own.
        on_iteration: called as ``on_iteration(i, iterations)`` after each round, i from 1.
            Searches whose scores do not depend on what is pruned have none.

    Returns:
        The masks by name: bool, of the weight's shape, on its device; all True for weights of
        ``search.skip``.
    """
    settings, keep_ratio = recipe.search, planned.of(recipe.keep_ratio)
    if method_of(recipe).rounds:
        return magnitude(net, keep_ratio, input_shape=splits.input_shape)
    own: dict[str, Any] = {}
    if settings.reads["samples"]:
        assert isinstance(splits, Splits)
        own["example_inputs"] = _samples(net, recipe, splits.train)
    if settings.reads["batch_norm"] and settings.batch_norm != "published":
        own["batch_norm"] = settings.batch_norm
    if settings.reads["precision"]:
        own["dtype"] = getattr(torch, settings.precision)
    if settings.reads["ratios"]:
        own["ratios"] = {name: planned.of(ratio) for name, ratio in _ratios(net, recipe).items()}
    for name in ("ratio_form", "linear_keep_ratio"):
        if settings.reads[name]:
            own[name] = getattr(settings, name)
    if settings.skip:
        own["skip"] = settings.skip
    masks: dict[str, Tensor] = SEARCHES.get(settings.method)(
        net, keep_ratio, input_shape=splits.input_shape, iterations=settings.rounds,
        schedule=settings.schedule, scope=settings.scope, seed=recipe.seed,
        on_iteration=on_iteration, **own,
    )  # fmt: skip
    if settings.skip:
        weights = seeded_parameters(net).items()
        masks = {**{name: torch.ones_like(w, dtype=torch.bool) for name, w in weights}, **masks}
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
    inputs, labels = next(
        batches(images, wanted, shuffle_seed=recipe.seed, epoch=_SAMPLE_EPOCH, device=device)
    )
    # Of nearly equal size, so that batch norm never meets a last batch of a single image.
    count = math.ceil(wanted / recipe.batch_size)
    halves = inputs.tensor_split(count), labels.tensor_split(count)
    return list(zip(*halves, strict=True))


def _ratios(net: nn.Module, recipe: Recipe) -> dict[str, float]:
    """Return the keep ratio of each weight, as the recipe has it for the end."""
    own, weights = recipe.search.ratios, list(selected(net, skip=recipe.search.skip or None))
    for name in own:
        if name not in weights:
            close = difflib.get_close_matches(name, weights, n=1, cutoff=0.0)
            raise RecipeError(
                f"search.ratios: expected names of the weights that {recipe.arch} draws from its "
                f"seed, found {name!r}; did you mean {close[0]}?"
            )
    return {**dict.fromkeys(weights, recipe.keep_ratio), **own}


def learned_by_scores(checkpoint: Checkpoint) -> bool:
    """Return whether a score method found the ticket that a checkpoint holds."""
    method = (checkpoint.settings or {}).get("method")
    if not isinstance(method, str) or method not in METHODS:
        return False
    return bool(METHODS.facts(method).get("scores"))


def ticket_settings(ticket: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the settings that decide a ticket, nested, for a recipe that is to train it.

    A ticket of the caller's own architecture names none: a file never decides what is imported.

    Raises:
        CheckpointError: the file is no checkpoint.
        OSError: the file cannot be opened.
    """
    checkpoint = load_checkpoint(ticket)
    settings = dict(checkpoint.settings or {})
    keys = ["data", "seed", "scheme", "classifier", "validation"]
    if ":" not in str(settings.get("arch")):
        keys += ["arch", "arch_options"]
    if not learned_by_scores(checkpoint):
        keys += ["keep_ratio", "search"]
    return {key: settings[key] for key in keys if key in settings}


def ticket_seeding(recipe: Recipe, checkpoint: Checkpoint) -> Seeding:
    """Return the record of a network that trains on from the ticket of a score method.

    A method whose files stay seeded flips signs anywhere, so what the seed fixed of the mask is
    no longer fixed, and files hold the whole mask. Other methods keep it on record with the ticket.
    """
    record = checkpoint.seeding
    return replace(record, frozen={}) if method_of(recipe).seeded else record


def ticket_digest(checkpoint: Checkpoint) -> str:
    """Return the SHA-256 of what `apply_ticket` takes of a ticket, in hexadecimal."""
    record, taken = checkpoint.seeding, dict(checkpoint.state_dict)
    if not learned_by_scores(checkpoint):
        taken = {name: taken[name] != 0 for name in record.specs}
    return digest([record.seed, record.specs, record.frozen, taken])


def apply_ticket(
    net: nn.Module, recipe: Recipe, ticket: str | os.PathLike[str] | Checkpoint
) -> dict[str, Tensor]:
    """Prune a freshly built network to a ticket that was found before, in place of a search.

    That is one that `find_ticket` wrote, or the network that a score method left. Such a network
    is taken whole: its weights, and the state of its batch norm, biases and dense classifier, from
    which fine-tuning goes on. A mask that its seed froze in part is no longer frozen where the
    recipe's method flips signs (`ticket_seeding`).

    Args:
        net: from `pabzip.train.build_network` for ``recipe``, on any device.
        recipe: what is to be trained. All that decides the ticket must be as it was for the
            search: architecture, seed, init, keep ratio and the search's own settings. Where
            scores found it, its keep ratio is what it is, and the recipe's is not read.
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
    found = _differences(net, recipe, checkpoint)
    if found:
        raise CheckpointError(
            f"{place}: expected the ticket of this recipe, found differences: {'; '.join(found)}; "
            "train it with the recipe it was found with, or search again"
        )
    weights = seeded_parameters(net)
    masks = {name: checkpoint.state_dict[name] != 0 for name in weights}
    if learned_by_scores(checkpoint):
        net.load_state_dict(dict(checkpoint.state_dict))
        attach_seeding(net, ticket_seeding(recipe, checkpoint))
        return {name: mask.to(weights[name].device) for name, mask in masks.items()}
    for name, weight in weights.items():
        stored, survives = checkpoint.state_dict[name], masks[name]
        moved = int(torch.count_nonzero((stored != weight.detach().cpu()) & survives))
        if moved:
            raise CheckpointError(
                f"{place}: {name}: expected survivors as the seed draws them, found {moved} of "
                f"{int(survives.sum())} that differ: it was trained on already; pass the ticket "
                "that the search wrote"
            )
    masks = {name: mask.to(weights[name].device) for name, mask in masks.items()}
    apply_masks(net, masks)
    return masks


def _differences(net: nn.Module, recipe: Recipe, checkpoint: Checkpoint) -> list[str]:
    """Return what differs between a checkpoint and a recipe, for a message."""
    arch, options = getattr(net, "pabzip_arch", ("custom", {}))
    told = {
        "arch": checkpoint.arch, "arch_options": checkpoint.arch_options, "seed": checkpoint.seed,
        "init": checkpoint.init,
    }  # fmt: skip
    own = {
        "arch": arch, "arch_options": options, "seed": seeding(net).seed,
        "init": seeding(net).specs,
    }  # fmt: skip
    alike = checkpoint.arch == arch
    if not alike:  # the weights of another architecture would fill the message
        del told["init"], own["init"]
    there, here = dict(flat(told)), dict(flat(own))
    for name, weight in seeded_parameters(net).items():
        if alike and name in checkpoint.state_dict:
            there[f"shape of {name}"] = list(checkpoint.state_dict[name].shape)
            here[f"shape of {name}"] = list(weight.shape)
    if checkpoint.settings is None:
        here["recipe"] = "a recipe"
    elif learned_by_scores(checkpoint):
        # Biprop gives the weights another magnitude; which stream drew each one stays.
        for values, specs in ((there, checkpoint.init), (here, seeding(net).specs)):
            streams = {f"init.{name}": f"stream {spec.stream}" for name, spec in specs.items()}
            values |= streams if alike else {}
        # The network is taken whole, so its dense tensors must fit, too.
        if alike:
            for values, state in ((there, checkpoint.state_dict), (here, net.state_dict())):
                values |= {f"shape of {name}": list(value.shape) for name, value in state.items()}
        # Scores have seen all images that were not held out.
        held = checkpoint.settings.get("validation", 0.0)
        there |= {"search.epoch": 0, "search.shots": 1, "validation": held}
        here |= {"search.epoch": recipe.search.epoch, "search.shots": recipe.search.shots}
        here |= {"validation": recipe.validation}
    else:
        sampled = ["data", "batch_size", "validation"] if recipe.search.reads["samples"] else []
        decide = {"keep_ratio", *sampled}
        for values, settings in ((there, checkpoint.settings), (here, recipe)):
            for key, value in comparable(settings).items():
                if key in decide or key.startswith("search."):
                    values[key] = value

    def shown(value: object) -> str:
        return "nothing" if value is None else str(value)

    return [
        f"{key}: {shown(there.get(key))} there, {shown(here.get(key))} here"
        for key in {**here, **there}
        if there.get(key) != here.get(key)
    ]


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
    if recipe.search.method != "synflow":
        raise RecipeError(
            "search.method: expected synflow, which needs no data, found "
            f"{recipe.search.method!r}; estimate with synflow, or train and read the cost from the "
            "results"
        )
    data = geometry(recipe.data)
    net = build_network(recipe, data)
    masks = search_masks(net, recipe, data, on_iteration=on_iteration)
    costs = method_costs(net, data.input_shape, masks, psg=recipe.psg, drop_ratio=recipe.drop_ratio)
    return Estimate(
        layers=costs,
        weights=sum(mask.numel() for mask in masks.values()),
        survivors=sum(int(mask.sum()) for mask in masks.values()),
    )
