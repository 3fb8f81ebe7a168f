"""Bop: flip a sign when a moving average of its gradient is large enough."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pabzip.errors import RecipeError
from pabzip.init import seeded_parameters
from pabzip.unmask.bop_update import seed_signs, update
from pabzip.unmask.rule import FlippingRule, check_not_negative
from pabzip.wrappers import check_whole, is_split, local

STARTS = ("first-gradient", "zero")
"""What the moving average is before the first step; see `Bop`."""


class Bop(FlippingRule):
    r"""Flips the sign of a weight when its gradient has asked for it clearly and for long enough.

    For a weight w with gradient g, each step is::

        e <- (1 - gamma) * e + gamma * g                          (5)
        w <- -w   if |e| >= tau and e * w > 0, else w             (6)

    Magnitudes never change, to the bit; a weight of zero (pruned) stays +0.0. The groups hold
    ``adaptivity_rate`` as ``"lr"``, where torch's schedulers find it as `AdaptivityDecay` does; a
    scheduler may bring it down to 0, which keeps the averages as they are, and a value above 1 is
    an error of the step. There is no momentum to cycle (``cycle_momentum=False``).

    Under FSDP each rank flips its own part of a weight, and `flips` counts that part.

    What the parameters do: ``threshold`` (tau) too high and the signs stay as they were drawn, too
    low and weights flip to and fro on the noise of single batches. ``adaptivity_rate`` (gamma) too
    high has that same effect, and then wants a higher threshold; too low, and recent gradients
    hardly enter the average, so too few weights ever flip (Figure 3). Watch `flips`: it should fall
    over the epochs without being zero from the start. Gradients scale with the loss, and the
    threshold with them.

    With a ``flip_cost`` above 0 the rule is ours, and trades loss against the bytes of the file:
    every weight is pulled back to its initial sign, the one that its seed gave, by what a flip
    costs in bits there. A flip that does not lower the loss by ``flip_cost`` for each bit is not
    made, or taken back (`pabzip.unmask.bop_update` derives it). The optimizer then remembers the
    initial signs, one byte a weight, in its state.

    A gradient that is NaN makes the moving average of its weight NaN for good, and that weight
    never flips again: comparisons with NaN are false. The weights themselves stay sound; check the
    loss and stop, as `pabzip.train` does.

    Args:
        params: a network (its seeded weights are taken), or parameters or parameter groups as for
            any torch optimizer. A group may carry its own ``adaptivity_rate``, ``threshold``,
            ``start`` and ``flip_cost``. Parameters without a gradient are left out of a step.
        adaptivity_rate: gamma, in (0, 1].
        threshold: tau, zero or more, in the units of the gradient.
        start: ``"first-gradient"`` begins with e equal to the first gradient, as the published code
            does, so that weights can flip from the first steps on; ``"zero"`` begins with e = 0, as
            Helwegen et al. do, so that the first flips take a while.
        flip_cost: lambda, the loss that a bit of the file is worth, zero or more; 0 is the paper's
            rule. Best with ``start="zero"``: the first gradient alone says little of what a flip is
            worth. The initial signs are drawn again if ``params`` is a network; parameters are
            taken to have them at their first step.

    Raises:
        RecipeError: a value out of range, a parameter claimed twice, or one that is not floating.
        SeedError: a network that was not drawn from a seed.

    Source: Peek-a-Boo, Appendix A, equations (5) and (6); Helwegen et al. 2019. Deviations: the
    decision takes the average that holds the current gradient, as both published codes do, where
    (6) as printed takes the one before it. The published code's very first average is
    ``(1 + gamma) * g``; here it is ``g``. For half-precision weights the average is float32.
    ``flip_cost`` is ours.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        adaptivity_rate: float = 1e-3,
        threshold: float = 1e-6,
        start: str = "first-gradient",
        flip_cost: float = 0.0,
    ):
        seeded = seeded_parameters(params) if isinstance(params, nn.Module) else {}
        if flip_cost > 0 and isinstance(params, nn.Module):
            check_whole(params, "Bop: flip_cost", "leave flip_cost at 0", RecipeError)
        defaults = {
            "lr": adaptivity_rate,
            "threshold": threshold,
            "start": start,
            "flip_cost": flip_cost,
        }
        _check_group(defaults)
        super().__init__(seeded.values() if isinstance(params, nn.Module) else params, defaults)
        if isinstance(params, nn.Module) and flip_cost > 0:
            for name, sign in seed_signs(params).items():
                self.state[seeded[name]]["initial_sign"] = sign.to(seeded[name].device)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as every torch optimizer does, with Bop's own checks.

        Raises:
            RecipeError: a value out of range, a parameter claimed twice, or one not floating.
        """
        group = dict(param_group)
        given = group["params"]
        group["params"] = [given] if isinstance(given, Tensor) else list(given)
        if "adaptivity_rate" in group:
            group["lr"] = group.pop("adaptivity_rate")
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

    def _advance(self) -> None:
        """Update the moving averages and flip."""
        counts: list[Tensor] = []
        for group in self.param_groups:
            rate = float(group["lr"])
            if not 0.0 <= rate <= 1.0:
                raise RecipeError(
                    f"Bop: lr: expected an adaptivity rate from 0 to 1, found {rate!r}, as a "
                    "scheduler has set it; give the scheduler smaller values"
                )
            moved = [weight for weight in group["params"] if weight.grad is not None]
            fresh = [weight for weight in moved if "moving_average" not in self.state[weight]]
            known = [weight for weight in moved if "moving_average" in self.state[weight]]
            for weight in fresh:
                dtype = torch.promote_types(weight.dtype, torch.float32)
                self.state[weight]["moving_average"] = torch.zeros_like(weight, dtype=dtype)
            priced = group["flip_cost"] > 0
            if priced and any(map(is_split, moved)):
                raise RecipeError(
                    "Bop: flip_cost: expected whole weights, of which it counts the flips, found "
                    "some that FSDP shards; leave flip_cost at 0"
                )
            for weight in moved if priced else ():
                if "initial_sign" not in self.state[weight]:
                    # Of a weight that did not come with its network only those of now are known.
                    self.state[weight]["initial_sign"] = weight.detach().sign().to(torch.int8)
            # An average that begins at the first gradient moves all the way to it.
            begin = 1.0 if group["start"] == "first-gradient" else rate
            for weights, share in ((fresh, begin), (known, rate)):
                counts += update(
                    [local(weight) for weight in weights],
                    [local(self.state[weight]["moving_average"]) for weight in weights],
                    [local(weight.grad) for weight in weights if weight.grad is not None],
                    [self.state[weight]["initial_sign"] for weight in weights] if priced else None,
                    rate=share,
                    threshold=group["threshold"],
                    flip_cost=group["flip_cost"],
                )
        self._count(counts)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a `state_dict`; moving averages and signs come back to the bit."""
        super().load_state_dict(state_dict)
        # torch casts state to the weight's dtype, which would round the average of a half weight
        # and widen the signs.
        saved = state_dict["state"]
        for group, stored in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for weight, key in zip(group["params"], stored["params"], strict=True):
                for name, value in saved.get(key, {}).items():
                    self.state[weight][name] = value.detach().to(weight.device, copy=True)


def _check_group(group: dict[str, Any]) -> None:
    """Raise unless the values of a parameter group are in range."""
    rate, start = group["lr"], group["start"]
    if not 0.0 < rate <= 1.0:
        raise RecipeError(f"Bop: adaptivity_rate: expected 0 < rate <= 1, found {rate!r}")
    check_not_negative("Bop", threshold=group["threshold"], flip_cost=group["flip_cost"])
    if start not in STARTS:
        raise RecipeError(f"Bop: start: expected one of {', '.join(STARTS)}, found {start!r}")


class AdaptivityDecay:
    """Multiplies the adaptivity rate of every group by ``ratio`` once in ``every`` epochs.

    As torch's ``StepLR``, but its state is one plain number, the finished epochs: call `step` at
    the end of each. The rate itself travels with the optimizer's ``state_dict``.

    Args:
        optimizer: a `Bop`.
        every: epochs between decays, at least 1.
        ratio: factor of a decay, in (0, 1]. Too small a ratio freezes the signs early, as the
            moving average then hardly moves; 1 never decays.
        first: epochs before the first decay; ``every`` by default.

    Raises:
        RecipeError: an argument out of range, or another optimizer.

    Source: Peek-a-Boo, Section 4.1 (0.15 every 45 epochs).
    """

    def __init__(
        self, optimizer: Bop, every: int = 45, ratio: float = 0.15, first: int | None = None
    ):
        first = every if first is None else first
        for name, epochs in (("every", every), ("first", first)):
            if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
                raise RecipeError(f"{name}: expected an integer of at least 1, found {epochs!r}")
        if not 0.0 < ratio <= 1.0:
            raise RecipeError(f"ratio: expected 0 < ratio <= 1, found {ratio!r}")
        if not isinstance(optimizer, Bop):
            raise RecipeError(
                f"AdaptivityDecay: expected Bop, found {type(optimizer).__name__}; for a learning "
                "rate use torch.optim.lr_scheduler.StepLR"
            )
        self.optimizer = optimizer
        self.every, self.first = every, first
        self.ratio = ratio
        self.epoch = 0

    def step(self) -> None:
        """Count one finished epoch, and decay if it completes a period."""
        self.epoch += 1
        after = self.epoch - self.first
        if after >= 0 and after % self.every == 0:
            for group in self.optimizer.param_groups:
                group["lr"] *= self.ratio

    def state_dict(self) -> dict[str, Any]:
        """Return the number of finished epochs, as ``{"epoch": int}``."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count of a `state_dict`; the optimizer's own state is restored apart."""
        self.epoch = int(state_dict["epoch"])
