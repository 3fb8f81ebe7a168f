"""Latent signs: a number for each weight, trained by SGD, whose sign is the weight's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from pabzip.errors import RecipeError
from pabzip.init import seeded_parameters, seeding
from pabzip.seeds import InitSpec, weights
from pabzip.seeds.spec import MAX_SCALE, MIN_SCALE
from pabzip.unmask.rule import FlippingRule, check_sgd, flip

# Each latent weight's stream of the generator is its weight's with this bit turned; weights take
# streams from 0 upwards.
_STREAM_BIT = 2**30


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
        if not MIN_SCALE <= start <= MAX_SCALE:
            raise RecipeError(
                f"LatentSigns: start: expected a number from {MIN_SCALE:g} to {MAX_SCALE:g}, found "
                f"{start!r}"
            )
        parameters = seeded_parameters(net)
        for name, weight in parameters.items():
            if weight.dtype != torch.float32:
                raise RecipeError(
                    f"LatentSigns: {name}: expected a float32 weight, found {weight.dtype}; "
                    "train in float32, under torch.autocast where speed matters"
                )
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(list(parameters.values()), defaults)
        record = seeding(net)
        for name, weight in parameters.items():
            stream = record.specs[name].stream ^ _STREAM_BIT
            spec = InitSpec("uniform", float(np.float32(start)), stream)
            drawn = torch.from_numpy(np.abs(weights(record.seed, spec, 0, weight.numel())))
            latent = torch.sign(weight.detach())
            latent *= drawn.view(weight.shape).to(weight.device)
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
