"""Learning rates that fall at given epochs."""

from __future__ import annotations

from typing import Any

import torch


class MilestoneDecay:
    """Multiplies the learning rate of every group by ``decay`` after each epoch in ``milestones``.

    As torch's ``MultiStepLR``, but its state is one plain number, the finished epochs; the rate
    itself travels with the optimiser.

    Args:
        optimizer: one whose groups hold ``"lr"``.
        milestones: epochs, counted from 1.
        decay: the factor.

    Source: Peek-a-Boo, Section 4.1 (0.1 at epochs 80 and 120).
    """

    def __init__(self, optimizer: torch.optim.Optimizer, milestones: tuple[int, ...], decay: float):
        self.optimizer = optimizer
        self.milestones = frozenset(milestones)
        self.decay = decay
        self.epoch = 0

    def step(self) -> None:
        """Count one finished epoch, and decay if it is a milestone."""
        self.epoch += 1
        if self.epoch in self.milestones:
            for group in self.optimizer.param_groups:
                group["lr"] *= self.decay

    def state_dict(self) -> dict[str, Any]:
        """Return the number of finished epochs, as ``{"epoch": int}``."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the count of `state_dict`; restore the optimiser's own state as well."""
        self.epoch = int(state_dict["epoch"])
