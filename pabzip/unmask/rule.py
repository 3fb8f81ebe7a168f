"""What the optimizers of seeded weights share: torch's ``step``, flips of signs, and checks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from pabzip.errors import RecipeError
from pabzip.init import seeded_parameters, seeding
from pabzip.seeds import InitSpec, weights
from pabzip.seeds.spec import MAX_SCALE, MIN_SCALE
from pabzip.wrappers import check_whole

# A number that is learned for a weight begins as its weight's stream of the generator, with this
# bit turned, draws it; weights take streams from 0 upwards.
_STREAM_BIT = 2**30


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


def flip(weights: list[Tensor], chosen: list[Tensor]) -> list[Tensor]:
    """Flip the signs of some weights in place; their magnitudes, and +0.0, stay to the bit.

    Args:
        weights: floating tensors.
        chosen: of the same shapes, floating, 1 where a sign flips and 0 elsewhere; overwritten.

    Returns:
        The number of flips of each tensor: int64 scalars, on the weights' devices.
    """
    counts = [torch.count_nonzero(flips) for flips in chosen]
    # Factors of +1 and -1, as torch.where is far slower.
    torch._foreach_mul_(chosen, -2)
    torch._foreach_add_(chosen, 1)
    torch._foreach_mul_(weights, chosen)
    return counts


def laid_out_as(tensor: Tensor, weight: Tensor) -> Tensor:
    """Return a tensor with the strides of a dense weight of its shape; itself where it has them."""
    if tensor.stride() == weight.stride():
        return tensor
    return torch.empty_like(weight, dtype=tensor.dtype).copy_(tensor)


def check_not_negative(rule: str, **values: float) -> None:
    """Refuse a value that is below zero, infinite or not a number.

    Raises:
        RecipeError: names the rule, the argument and the value.
    """
    for name, value in values.items():
        if not 0.0 <= value < math.inf:
            raise RecipeError(f"{rule}: {name}: expected zero or more, and finite, found {value!r}")


def check_sgd(rule: str, lr: float, momentum: float, weight_decay: float) -> None:
    """Refuse values that no step of SGD can be taken with.

    Raises:
        RecipeError: names the rule, the argument and the value.
    """
    check_not_negative(rule, lr=lr, weight_decay=weight_decay)
    if not 0.0 <= momentum < 1.0:
        raise RecipeError(f"{rule}: momentum: expected 0 <= momentum < 1, found {momentum!r}")


def check_start(rule: str, start: float) -> None:
    """Refuse a bound that learned numbers cannot begin within.

    Raises:
        RecipeError: names the rule and the value.
    """
    if not MIN_SCALE <= start <= MAX_SCALE:
        raise RecipeError(
            f"{rule}: start: expected a number from {MIN_SCALE:g} to {MAX_SCALE:g}, found {start!r}"
        )


def float32_weights(rule: str, net: nn.Module) -> dict[str, nn.Parameter]:
    """Return the seeded weights of a network by name, all float32.

    Raises:
        RecipeError: one is not float32; names the rule and the weight.
        SeedError: the network was not drawn from a seed.
    """
    check_whole(net, rule, "use Bop, which takes each weight alone", RecipeError)
    parameters = seeded_parameters(net)
    for name, weight in parameters.items():
        if weight.dtype != torch.float32:
            raise RecipeError(
                f"{rule}: {name}: expected a float32 weight, found {weight.dtype}; train in "
                "float32, under torch.autocast where speed matters"
            )
    return parameters


def uniform_start(net: nn.Module, name: str, weight: Tensor, bound: float) -> Tensor:
    """Return numbers of a seeded weight's shape, drawn evenly from -bound to bound by the seed."""
    record = seeding(net)
    stream = record.specs[name].stream ^ _STREAM_BIT
    spec = InitSpec("uniform", float(np.float32(bound)), stream)
    drawn = torch.from_numpy(weights(record.seed, spec, 0, weight.numel()))
    return drawn.view(weight.shape).to(weight.device)
