"""Decay of Bop's adaptivity rate over the epochs."""

from __future__ import annotations

from typing import Any

import torch

from pabzip.errors import RecipeError


class AdaptivityDecay:
    """Multiplies the adaptivity rate of every group by ``ratio`` once in ``every`` epochs.

    Call `step` at the end of each epoch. The rate itself lives in the optimiser's parameter
    groups and travels in its ``state_dict``; this object only counts epochs, and has a
    ``state_dict`` of its own.

    Args:
        optimizer: a `Bop` (or any optimiser whose groups hold ``"adaptivity_rate"``).
        every: epochs between decays, at least 1.
        ratio: factor of a decay, in (0, 1]. Too small a ratio freezes the signs early, as the
            moving average then hardly moves; 1 never decays.

    Raises:
        RecipeError: an argument out of range, or an optimiser without an adaptivity rate.

    Source: Peek-a-Boo, Section 4.1 (0.15 every 45 epochs).
    """

    def __init__(self, optimizer: torch.optim.Optimizer, every: int = 45, ratio: float = 0.15):
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise RecipeError(f"every: expected an integer of at least 1, found {every!r}")
        if not 0.0 < ratio <= 1.0:
            raise RecipeError(f"ratio: expected 0 < ratio <= 1, found {ratio!r}")
        if not all("adaptivity_rate" in group for group in optimizer.param_groups):
            raise RecipeError(
                f"{type(optimizer).__name__}: expected parameter groups with an adaptivity_rate, "
                "found none; AdaptivityDecay is for Bop"
            )
        self.optimizer = optimizer
        self.every = every
        self.ratio = ratio
        self.epoch = 0

    def step(self) -> None:
        """Count one finished epoch, and decay if it completes a period."""
        self.epoch += 1
        if self.epoch % self.every == 0:
            for group in self.optimizer.param_groups:
                group["adaptivity_rate"] *= self.ratio

    def state_dict(self) -> dict[str, Any]:
        """Return the number of finished epochs, as ``{"epoch": int}``."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the count of `state_dict`; restore the optimiser's own state as well."""
        self.epoch = int(state_dict["epoch"])
