"""Bop: signs learned by flipping weights, with no latent weights and no step size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from pabzip.errors import RecipeError
from pabzip.init import seeded_parameters

STARTS = ("first-gradient", "zero")
"""What the moving average is before the first step; see `Bop`."""


class Bop(torch.optim.Optimizer):
    r"""Flips the sign of a weight when its gradient has asked for it clearly and for long enough.

    For a weight w with gradient g, each step is::

        e <- (1 - gamma) * e + gamma * g                          (5)
        w <- -w   if |e| >= tau and e * w > 0, else w             (6)

    Magnitudes never change, to the bit; a weight of zero (pruned) stays +0.0. There is no learning
    rate. ``adaptivity_rate`` stands in ``param_groups``, where `AdaptivityDecay` lowers it.

    What the parameters do: ``threshold`` (tau) too high and the signs stay as they were drawn, too
    low and weights flip to and fro on the noise of single batches. ``adaptivity_rate`` (gamma) too
    high has that same effect, and then wants a higher threshold; too low, and recent gradients
    hardly enter the average, so too few weights ever flip (Figure 3). Watch `flips`: it should fall
    over the epochs without being zero from the start. Gradients scale with the loss, and the
    threshold with them.

    A gradient that is NaN makes the moving average of its weight NaN for good, and that weight
    never flips again: comparisons with NaN are false. The weights themselves stay sound; check the
    loss and stop, as `pabzip.train` does.

    Args:
        params: a network (its seeded weights are taken), or parameters or parameter groups as for
            any torch optimiser. A group may carry its own ``adaptivity_rate``, ``threshold`` and
            ``start``. Parameters without a gradient are left out of a step.
        adaptivity_rate: gamma, in (0, 1].
        threshold: tau, zero or more, in the units of the gradient.
        start: ``"first-gradient"`` begins with e equal to the first gradient, as the published code
            does, so that weights can flip from the first steps on; ``"zero"`` begins with e = 0, as
            Helwegen et al. do, so that the first flips take a while.

    Raises:
        RecipeError: a value out of range, a parameter claimed twice, or one that is not floating.
        SeedError: a network that was not drawn from a seed.

    Source: Peek-a-Boo, Appendix A, equations (5) and (6); Helwegen et al. 2019. Deviations: the
    decision takes the average that holds the current gradient, as both published codes do, where
    (6) as printed takes the one before it. The published code's very first average is
    ``(1 + gamma) * g``; here it is ``g``. For half-precision weights the average is float32.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        adaptivity_rate: float = 1e-3,
        threshold: float = 1e-6,
        start: str = "first-gradient",
    ):
        if isinstance(params, nn.Module):
            params = list(seeded_parameters(params).values())
        self._flips: Tensor | None = None
        defaults = {"adaptivity_rate": adaptivity_rate, "threshold": threshold, "start": start}
        _check_group(defaults)
        super().__init__(params, defaults)

    @property
    def flips(self) -> Tensor:
        """How many weights the last step flipped: int64 scalar on the weights' device.

        Zero before the first step. Reading it costs nothing; ``int(bop.flips)`` waits for the
        device.
        """
        if self._flips is None:
            device = self.param_groups[0]["params"][0].device
            return torch.zeros((), dtype=torch.int64, device=device)
        return self._flips

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as every torch optimiser does, with Bop's own checks.

        Raises:
            RecipeError: a value out of range, a parameter claimed twice, or one not floating.
        """
        group = dict(param_group)
        given = group["params"]
        group["params"] = [given] if isinstance(given, Tensor) else list(given)
        _check_group({**self.defaults, **group})
        claimed = {id(p) for other in self.param_groups for p in other["params"]}
        for position, entry in enumerate(group["params"]):
            parameter = entry[1] if isinstance(entry, tuple) else entry
            if not isinstance(parameter, Tensor) or not parameter.is_floating_point():
                raise RecipeError(
                    f"Bop: parameter {position} of group {len(self.param_groups)}: expected a "
                    f"floating tensor, found {getattr(parameter, 'dtype', type(parameter))}"
                )
            if id(parameter) in claimed:
                raise RecipeError(
                    f"Bop: parameter {position} of group {len(self.param_groups)}, of shape "
                    f"{tuple(parameter.shape)}, is claimed twice; expected each parameter once"
                )
            claimed.add(id(parameter))
        super().add_param_group(group)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the moving averages and flip; ``closure`` recomputes the loss, and is optional.

        Returns:
            What ``closure`` returns, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        counts = []
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                averages = self._averages(weights, group["adaptivity_rate"], group["start"])
                counts += _flip(weights, averages, group["threshold"])
        self._flips = None
        if counts:
            self._flips = torch.stack([count.to(counts[0].device) for count in counts]).sum()
        return loss

    def _averages(self, weights: list[Tensor], rate: float, start: str) -> list[Tensor]:
        """Apply equation (5) and return the moving averages."""
        averages, moving, gradients = [], [], []
        for weight in weights:
            state = self.state[weight]
            gradient = weight.grad
            assert gradient is not None
            dtype = torch.promote_types(weight.dtype, torch.float32)
            average = state.get("moving_average")
            if average is None and start == "first-gradient":
                average = gradient.to(dtype, copy=True)
            else:
                if average is None:
                    average = torch.zeros_like(weight, dtype=dtype)
                moving.append(average)
                gradients.append(gradient.to(dtype))
            state["moving_average"] = average
            averages.append(average)
        if moving:
            torch._foreach_mul_(moving, 1 - rate)
            torch._foreach_add_(moving, gradients, alpha=rate)
        return averages

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a `state_dict`; the moving averages come back to the bit."""
        super().load_state_dict(state_dict)
        # torch casts state to the weight's dtype, which would round the average of a half weight.
        saved = state_dict["state"]
        for group, stored in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for weight, key in zip(group["params"], stored["params"], strict=True):
                if key in saved:
                    average = saved[key]["moving_average"]
                    self.state[weight]["moving_average"] = average.detach().to(
                        weight.device, copy=True
                    )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._flips = None


def _flip(weights: list[Tensor], averages: list[Tensor], threshold: float) -> list[Tensor]:
    """Apply equation (6) in place; return the number of flips of each tensor."""
    # e * sign(w) is |e| where both agree in sign, -|e| where they do not, and 0 where w is 0: one
    # comparison decides, and no product of two small numbers can underflow.
    flips = [
        sign.to(average.dtype)
        for sign, average in zip(torch._foreach_sign(weights), averages, strict=True)
    ]
    torch._foreach_mul_(flips, averages)
    for flip in flips:
        _ = flip.ge_(threshold) if threshold > 0 else flip.gt_(0)
    counts = [torch.count_nonzero(flip) for flip in flips]
    # Factors of +1 and -1 leave every magnitude, and +0.0, as it is; torch.where is far slower.
    torch._foreach_mul_(flips, -2)
    torch._foreach_add_(flips, 1)
    torch._foreach_mul_(weights, flips)
    return counts


def _check_group(group: dict[str, Any]) -> None:
    """Raise unless the values of a parameter group are in range."""
    rate, threshold, start = group["adaptivity_rate"], group["threshold"], group["start"]
    if not 0.0 < rate <= 1.0:
        raise RecipeError(f"Bop: adaptivity_rate: expected 0 < rate <= 1, found {rate!r}")
    if not 0.0 <= threshold < math.inf:
        raise RecipeError(f"Bop: threshold: expected zero or more, and finite, found {threshold!r}")
    if start not in STARTS:
        raise RecipeError(f"Bop: start: expected one of {', '.join(STARTS)}, found {start!r}")
