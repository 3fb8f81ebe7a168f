"""SignSGD: every weight moves by the same step, against the sign of its gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pabzip.errors import RecipeError
from pabzip.unmask.rule import Rule


class SignSgd(Rule):
    r"""SignSGD, and with momentum Signum.

    With gradient g, learning rate eta, momentum beta and weight decay lambda, each step is::

        m <- beta * m + (1 - beta) * g           (m = g without momentum; m = 0 at first)
        w <- (1 - eta * lambda) * w - eta * sign(m)

    The sign of 0 is 0, so a weight of zero whose gradient is always zero (pruned, its gradient
    masked) stays +0.0. All weights move equally far whatever the size of their gradient: too high a
    learning rate drowns small weights in noise, and wants a decay towards the end.

    The groups hold the learning rate as ``"lr"``, where torch's schedulers find it.

    Args:
        params: parameters or parameter groups, as for any torch optimizer. Those without a gradient
            are left out of a step.
        learning_rate: eta, zero or more.
        momentum: beta, at least 0, below 1.
        weight_decay: lambda, zero or more.

    Raises:
        RecipeError: a value out of range.

    Source: Bernstein et al. 2018, Algorithms 1 (SignSGD) and 2 (Signum); the weight decay is
    decoupled from the sign, which would forget its size.
    """

    def __init__(
        self,
        params: Iterable[Any],
        learning_rate: float = 0.01,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ):
        for name, value in (("learning_rate", learning_rate), ("weight_decay", weight_decay)):
            if not 0.0 <= value < math.inf:
                raise RecipeError(
                    f"SignSgd: {name}: expected zero or more, and finite, found {value!r}"
                )
        if not 0.0 <= momentum < 1.0:
            raise RecipeError(f"SignSgd: momentum: expected 0 <= momentum < 1, found {momentum!r}")
        defaults = {"lr": learning_rate, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    def _advance(self) -> None:
        """Take the step, group by group."""
        for group in self.param_groups:
            moved = [weight for weight in group["params"] if weight.grad is not None]
            if moved:
                self._move(moved, group)

    def _move(self, moved: list[Tensor], group: dict[str, Any]) -> None:
        """Take the step of one group."""
        gradients: list[Tensor] = [weight.grad for weight in moved]  # type: ignore[misc]
        if group["momentum"]:
            averages = [self._average(weight) for weight in moved]
            torch._foreach_mul_(averages, group["momentum"])
            torch._foreach_add_(averages, gradients, alpha=1 - group["momentum"])
            gradients = averages
        if group["weight_decay"]:
            torch._foreach_mul_(moved, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(moved, torch._foreach_sign(gradients), alpha=-group["lr"])

    def _average(self, weight: Tensor) -> Tensor:
        """Return the running average of a weight's gradient, zero at first."""
        state = self.state[weight]
        if "moving_average" not in state:
            state["moving_average"] = torch.zeros_like(weight)
        average: Tensor = state["moving_average"]
        return average
