"""What takes the steps of a run: the method's optimizer, and SGD for all else."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from pabzip.init import seeded_parameters
from pabzip.registry import METHODS
from pabzip.supermask import ScoreRule
from pabzip.supermask.scores import Schedule
from pabzip.train.config import Recipe, method_of
from pabzip.train.cost import bit_operations, step_costs
from pabzip.train.methods import falling_rate
from pabzip.unmask import PsgConfig, apply_psg
from pabzip.unmask.rule import FlippingRule


class Optimizers:
    """The optimizers and schedules of a run.

    What the recipe's method registered flips or moves the weights that the seed drew, or SGD does,
    as it moves every other parameter that trains. Pruned weights stay exactly +0.0: flips cannot
    move a zero, and other optimizers see the gradients of these weights as zero.

    Args:
        net: a network drawn from a seed and pruned, on its final device.
        recipe: ``method``, ``sgd`` and what the method uses matter.
        masks: bool tensors by name of the seeded weight, True for a survivor; none for a network
            that stays dense or is pruned later (`prune`).

    Source: Peek-a-Boo, Section 4.1.
    """

    def __init__(self, net: nn.Module, recipe: Recipe, masks: Mapping[str, torch.Tensor]):
        self._seeded = seeded_parameters(net)
        seeded = list(self._seeded.values())
        self._parts: dict[str, Optimizer] = {}
        self._schedules: dict[str, Schedule] = {}
        self._flipping: FlippingRule | None = None
        built = METHODS.get(recipe.method)(net, recipe)
        claimed: set[int] = set()
        if built is not None:
            optimizer, schedule = built
            self._parts["seeded"], self._schedules["seeded"] = optimizer, schedule
            self._flipping = optimizer if isinstance(optimizer, FlippingRule) else None
            claimed = {id(weight) for weight in seeded}
        rest = [p for p in net.parameters() if p.requires_grad and id(p) not in claimed]
        if rest:
            own = recipe.sgd
            sgd = SGD(rest, own.lr, own.momentum, weight_decay=own.weight_decay)
            self._parts["sgd"] = sgd
            falling = falling_rate(sgd, own.schedule, own, recipe.epochs)
            if falling is not None:
                self._schedules["sgd"] = falling
        self._no_flips = torch.zeros((), dtype=torch.int64, device=seeded[0].device)
        self._pruned: dict[str, torch.Tensor] = {}
        self._mask(masks)

    @property
    def flips(self) -> torch.Tensor:
        """How many signs the last step flipped: int64 scalar on the device.

        Zero for rules that move magnitudes.
        """
        return self._no_flips if self._flipping is None else self._flipping.flips

    @property
    def learned_masks(self) -> dict[str, torch.Tensor] | None:
        """Which weights a score method keeps now, bool by name; None for all other methods."""
        return self._flipping.masks if isinstance(self._flipping, ScoreRule) else None

    @property
    def scores(self) -> dict[str, torch.Tensor]:
        """What a score method has learned, by name of the weight; empty for all other methods."""
        return self._flipping.scores if isinstance(self._flipping, ScoreRule) else {}

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
        """Return the state as nested plain values and tensors, which are the current ones.

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


@contextmanager
def predictive_gradients(net: nn.Module, recipe: Recipe) -> Iterator[None]:
    """Let the seeded layers of ``net`` compute approximate gradients, where the method does so.

    Source: Peek-a-Boo, Section 3.3.
    """
    if not method_of(recipe).psg:
        yield
        return
    handle = apply_psg(net, PsgConfig(**dict(recipe.psg)))
    try:
        yield
    finally:
        handle.remove()


def shortened(
    recipe: Recipe,
    net: nn.Module,
    input_shape: tuple[int, ...],
    search: Callable[[nn.Module], Mapping[str, torch.Tensor]],
) -> Recipe:
    """Return ``recipe`` with so many epochs that they cost what ``pab-bop-psg`` would.

    Epochs and milestones are scaled by the ratio of the bit operations of a step, and rounded; at
    least one epoch remains, and milestones that fall together count once.

    Args:
        recipe: of a dense run; ``epochs``, ``keep_ratio``, ``search``, ``psg`` and ``sgd`` decide.
        net: the network, drawn from its seed; stays as it is.
        input_shape: shape of one sample without the batch.
        search: prunes the network that it is given as the ticket would be, and returns the masks.

    Source: Peek-a-Boo, Section 4.1 (Dense-SGD-Short) and Table 1: 0.30 Tr of 1.71 Tr for ResNet-18
    leaves 35 of 200 epochs. Where the recipe prunes in the midst of training, the cost is that of
    the last mask throughout.
    """
    masks = search(copy.deepcopy(net))
    cheap = Recipe(method="pab-bop-psg", psg=recipe.psg)
    ratio = step_costs(net, input_shape, masks, cheap).bitops / bit_operations(net, input_shape)
    milestones = sorted({max(1, round(epoch * ratio)) for epoch in recipe.sgd.milestones})
    return recipe.replace(
        epochs=max(1, round(recipe.epochs * ratio)),
        sgd=recipe.sgd.replace(milestones=tuple(milestones)),
        # The dense network is not pruned, so nothing happens at the epochs that the search names.
        search=recipe.search.replace(epoch=0, shots=1),
    )
