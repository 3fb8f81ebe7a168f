"""SignSGD: every weight moves by the same step, against the sign of its gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pabzip.unmask.rule import Rule, check_sgd


class SignSgd(Rule):
    r"""SignSGD, and with momentum Signum.

    With gradient g, learning rate eta, momentum beta and weight decay lambda, each step is::

        m <- beta * m + (1 - beta) * g           (m = g without momentum; m = 0 at first)
        w <- (1 - eta * lambda) * w - eta * sign(m)

    The sign of 0 is 0, so a weight of zero whose gradient is always zero (pruned, its gradient
    masked) stays +0.0. All weights move equally far whatever the size of their gradient: too high a
    learning rate drowns small weights in noise, and wants a decay towards the end.

    Args:
        params: parameters or parameter groups, as for any torch optimizer. Those without a gradient
            are left out of a step.
        lr: eta, zero or more.
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
        lr: float = 0.01,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ):
        check_sgd("SignSgd", lr, momentum, weight_decay)
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def _advance(self) -> None:
        """Take the step, group by group."""
        for group in self.param_groups:
            moved = [weight for weight in group["params"] if weight.grad is not None]
            if not moved:
                continue
            gradients: list[Tensor] = [weight.grad for weight in moved]
            if group["momentum"]:
                for weight in moved:
                    if "moving_average" not in self.state[weight]:
                        self.state[weight]["moving_average"] = torch.zeros_like(weight)
                averages = [self.state[weight]["moving_average"] for weight in moved]
                torch._foreach_mul_(averages, group["momentum"])
                torch._foreach_add_(averages, gradients, alpha=1 - group["momentum"])
                gradients = averages
            if group["weight_decay"]:
                torch._foreach_mul_(moved, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(moved, torch._foreach_sign(gradients), alpha=-group["lr"])
