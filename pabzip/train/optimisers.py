"""The two optimisers of a ticket and their schedules: Bop for the signs, SGD for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR

from pabzip.init import seeded_parameters
from pabzip.train.recipes import Recipe
from pabzip.unmask import AdaptivityDecay, Bop


class Optimisers:
    """Bop on the seeded weights, SGD with momentum on every other parameter that trains.

    Args:
        net: a network drawn from a seed, on its final device.
        recipe: ``bop`` and ``sgd`` matter.

    Attributes:
        bop: the sign optimiser.
        sgd: the other one; None when nothing is left for it.

    Source: Peek-a-Boo, Section 4.1.
    """

    def __init__(self, net: nn.Module, recipe: Recipe):
        bop, sgd = recipe.bop, recipe.sgd
        seeded = list(seeded_parameters(net).values())
        claimed = {id(weight) for weight in seeded}
        dense = [p for p in net.parameters() if p.requires_grad and id(p) not in claimed]
        self.bop = Bop(net, bop.adaptivity_rate, bop.threshold, bop.start, bop.flip_cost)
        self.sgd: SGD | None = None
        self._schedules: list[AdaptivityDecay | MultiStepLR] = [
            AdaptivityDecay(self.bop, bop.decay_every, bop.decay_ratio)
        ]
        if dense:
            self.sgd = SGD(dense, sgd.learning_rate, sgd.momentum, weight_decay=sgd.weight_decay)
            self._schedules.append(MultiStepLR(self.sgd, list(sgd.milestones), sgd.decay))

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self.bop.zero_grad()
        if self.sgd is not None:
            self.sgd.zero_grad()

    def step(self) -> None:
        """Flip signs and move the dense parameters by their gradients."""
        self.bop.step()
        if self.sgd is not None:
            self.sgd.step()

    def end_epoch(self) -> None:
        """Advance both schedules by an epoch."""
        for schedule in self._schedules:
            schedule.step()

    @property
    def flips(self) -> torch.Tensor:
        """How many signs the last step flipped: a scalar on the weights' device."""
        return self.bop.flips

    def state_dict(self) -> dict[str, Any]:
        """Return optimisers and schedules as nested plain values and tensors."""
        return {
            "bop": self.bop.state_dict(),
            "sgd": None if self.sgd is None else self.sgd.state_dict(),
            "schedules": [schedule.state_dict() for schedule in self._schedules],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a `state_dict`, to the bit."""
        self.bop.load_state_dict(state["bop"])
        if self.sgd is not None:
            self.sgd.load_state_dict(state["sgd"])
        for schedule, saved in zip(self._schedules, state["schedules"], strict=True):
            schedule.load_state_dict(saved)
