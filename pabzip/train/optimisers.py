"""The optimisers of a run and their schedules: one for the seed's weights, SGD for the rest."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from pabzip.init import seeded_parameters
from pabzip.train.methods import method_of
from pabzip.train.milestones import MilestoneDecay
from pabzip.train.recipes import Recipe
from pabzip.unmask import AdaptivityDecay, Bop, LatentSigns, SignSgd


class Optimisers:
    """What the recipe's method takes its steps with.

    Bop or latent signs flip the weights that the seed drew, SignSGD moves them, or SGD does, as it
    moves every other parameter that trains. Pruned weights stay exactly +0.0 under all of them:
    flips cannot move a zero, and the other rules see their gradients as zero.

    Args:
        net: a network drawn from a seed and pruned, on its final device.
        recipe: ``method``, ``bop``, ``latent``, ``sgd`` and ``signsgd`` matter.
        masks: bool tensors by name of the seeded weight, True for a survivor; none for a network
            that stays dense or is pruned later (`prune`).

    Source: Peek-a-Boo, Section 4.1.
    """

    def __init__(self, net: nn.Module, recipe: Recipe, masks: Mapping[str, torch.Tensor]):
        self._seeded = seeded_parameters(net)
        seeded = list(self._seeded.values())
        rule = method_of(recipe).rule
        self._parts: dict[str, Optimizer] = {}
        self._schedules: dict[str, AdaptivityDecay | MilestoneDecay] = {}
        self._flipping: Bop | LatentSigns | None = None
        if rule == "bop":
            bop = recipe.bop
            self._flipping = Bop(net, bop.adaptivity_rate, bop.threshold, bop.start, bop.flip_cost)
            self._parts["bop"] = self._flipping
            decay = AdaptivityDecay(self._flipping, bop.decay_every, bop.decay_ratio)
            self._schedules["bop"] = decay
        elif rule == "latent":
            latent = recipe.latent
            self._flipping = self._parts["latent"] = LatentSigns(
                net, latent.learning_rate, latent.momentum, latent.weight_decay, latent.start
            )
        elif rule == "signsgd":
            signs = recipe.signsgd
            self._parts["signsgd"] = SignSgd(
                seeded, signs.learning_rate, signs.momentum, signs.weight_decay
            )
        claimed = set() if rule == "sgd" else {id(weight) for weight in seeded}
        rest = [p for p in net.parameters() if p.requires_grad and id(p) not in claimed]
        sgd = recipe.sgd
        if rest:
            self._parts["sgd"] = SGD(
                rest, sgd.learning_rate, sgd.momentum, weight_decay=sgd.weight_decay
            )
        for name, part in self._parts.items():
            if name != "bop":
                self._schedules[name] = MilestoneDecay(part, sgd.milestones, sgd.decay)
        self._no_flips = torch.zeros((), dtype=torch.int64, device=seeded[0].device)
        self._pruned: dict[str, torch.Tensor] = {}
        self._mask(masks)

    @property
    def flips(self) -> torch.Tensor:
        """How many signs the last step flipped: int64 scalar on the device.

        Zero for rules that move magnitudes.
        """
        return self._no_flips if self._flipping is None else self._flipping.flips

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for part in self._parts.values():
            part.zero_grad()

    def step(self) -> None:
        """Flip signs or move weights, and move the other parameters, by their gradients."""
        for name, pruned in self._pruned.items():
            gradient = self._seeded[name].grad
            if gradient is not None:
                gradient.masked_fill_(pruned, 0.0)
        for part in self._parts.values():
            part.step()

    def end_epoch(self) -> None:
        """Advance all schedules by an epoch."""
        for schedule in self._schedules.values():
            schedule.step()

    def prune(self, masks: Mapping[str, torch.Tensor]) -> None:
        """Take up the masks of a later search; the weights themselves are the search's to prune.

        Averages, latents and momenta of weights that are pruned now become zero.
        """
        for name, mask in masks.items():
            weight = self._seeded[name]
            for part in self._parts.values():
                for value in part.state.get(weight, {}).values():
                    if isinstance(value, torch.Tensor) and value.shape == mask.shape:
                        value.masked_fill_(~mask, 0.0)
        self._mask(masks)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as nested plain values and tensors, which are the live ones.

        ``torch.load(weights_only=True)`` reads back what ``torch.save`` makes of it.
        """
        return {
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
            "schedules": {
                name: schedule.state_dict() for name, schedule in self._schedules.items()
            },
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a `state_dict` to the bit; it must come from the same recipe and network."""
        for name, part in self._parts.items():
            # A copy, as torch would go on to train the very tensors that it is given.
            part.load_state_dict(copy.deepcopy(state_dict["parts"][name]))
        for name, schedule in self._schedules.items():
            schedule.load_state_dict(state_dict["schedules"][name])

    def _mask(self, masks: Mapping[str, torch.Tensor]) -> None:
        """Remember where gradients must not move weights; flips cannot."""
        if self._flipping is None:
            self._pruned = {name: ~mask for name, mask in masks.items()}
