"""What the optimizers of the seed's weights share: the step that torch expects, and the count."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor


class Rule(torch.optim.Optimizer, ABC):
    """An optimizer that says in one method what becomes of the weights."""

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step by the weights' gradients; weights without a gradient are left out.

        Args:
            closure: recomputes the loss first; optional.

        Returns:
            What ``closure`` returns, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._advance()
        return loss

    @abstractmethod
    def _advance(self) -> None:
        """Move or flip the weights, without recording gradients."""


class FlippingRule(Rule):
    """A rule that flips signs, and knows how many its last step flipped."""

    _flips: Tensor | None = None

    @property
    def flips(self) -> Tensor:
        """How many weights the last step flipped: int64 scalar on the weights' device.

        Zero before the first step. Reading it costs nothing; ``int(rule.flips)`` waits for the
        device.
        """
        if self._flips is None:
            device = self.param_groups[0]["params"][0].device
            return torch.zeros((), dtype=torch.int64, device=device)
        return self._flips

    def _count(self, counts: Sequence[Tensor]) -> None:
        """Remember the flips of a step: one scalar a weight, on any device."""
        self._flips = None
        if counts:
            self._flips = torch.stack([count.to(counts[0].device) for count in counts]).sum()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._flips = None
