"""Latent signs: a number for each weight, trained by SGD, whose sign is the weight's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from pabzip.unmask.rule import (
    FlippingRule,
    check_sgd,
    check_start,
    flip,
    float32_weights,
    uniform_start,
)


class LatentSigns(FlippingRule):
    r"""Trains a latent number u for each seeded weight w, which has the sign of u.

    The sign is a step, whose gradient is taken to be 1 (the straight-through estimator). With
    gradient g of the weight, learning rate eta, momentum mu and weight decay lambda, each step is::

        d <- |w| * g + lambda * u
        b <- mu * b + d                          (b = d in the first step)
        u <- u - eta * b
        w <- |w| * sign(u)

    Magnitudes never change, to the bit; a weight of zero (pruned) stays +0.0, and so does its
    latent. A latent of exactly zero leaves the weight's sign as it is. The network computes with
    its own weights, so predictive gradients (`pabzip.unmask.apply_psg`) work as for `Bop`.

    What the parameters do: only the size of ``lr`` next to ``start`` matters to the
    order in which signs flip; too high and signs flicker, too low and none ever flips. Weights of a
    small magnitude get small gradients and flip late.

    Args:
        net: a network drawn from a seed and pruned, whose seeded weights are float32.
        lr: eta, zero or more.
        momentum: mu, at least 0, below 1.
        weight_decay: lambda, zero or more.
        start: latents begin in (0, ``start``], times the sign of their weight, uniformly drawn
            from the network's seed.

    Raises:
        RecipeError: a value out of range, or a weight that is not float32.
        SeedError: a network that was not drawn from a seed.

    Source: Ivan & Florian 2020, Sections 2 (the estimator and the start) and 3 (sign flipping);
    Peek-a-Boo, Section 4.1. Deviations: they write the weight as w0 * sign(t) with t = u * sign(w0)
    and Adam; this is the same in u, with SGD as in Peek-a-Boo. The published code of Peek-a-Boo
    starts in [0.01, 0.1).
    """

    def __init__(
        self,
        net: nn.Module,
        lr: float = 0.1,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        start: float = 0.1,
    ):
        check_sgd("LatentSigns", lr, momentum, weight_decay)
        check_start("LatentSigns", start)
        parameters = float32_weights("LatentSigns", net)
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(list(parameters.values()), defaults)
        for name, weight in parameters.items():
            latent = torch.sign(weight.detach())  # laid out as the weight is
            latent *= uniform_start(net, name, weight, start).abs_()
            self.state[weight]["latent"] = latent

    def _advance(self) -> None:
        """Move the latents and flip."""
        counts: list[Tensor] = []
        for group in self.param_groups:
            moved = [weight for weight in group["params"] if weight.grad is not None]
            if not moved:
                continue
            latents = [self.state[weight]["latent"] for weight in moved]
            gradients = list(torch._foreach_abs(moved))
            torch._foreach_mul_(gradients, [weight.grad for weight in moved])
            buffers = [self.state[weight].get("momentum_buffer") for weight in moved]
            sgd(
                latents,
                gradients,
                buffers,
                foreach=True,
                lr=group["lr"],
                momentum=group["momentum"],
                weight_decay=group["weight_decay"],
                dampening=0,
                nesterov=False,
                maximize=False,
            )
            if group["momentum"]:
                for weight, buffer in zip(moved, buffers, strict=True):
                    self.state[weight]["momentum_buffer"] = buffer
            # sign(w) * u is negative where they disagree, and zero where either is zero.
            chosen = list(torch._foreach_sign(moved))
            torch._foreach_mul_(chosen, latents)
            for products in chosen:
                products.lt_(0)
            counts += flip(moved, chosen)
        self._count(counts)
