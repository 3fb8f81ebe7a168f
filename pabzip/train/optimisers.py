"""The two optimisers of a ticket and their schedules: Bop for the signs, SGD for the rest."""

from __future__ import annotations

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
        self.bop = Bop(seeded, bop.adaptivity_rate, bop.threshold, bop.start)
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
