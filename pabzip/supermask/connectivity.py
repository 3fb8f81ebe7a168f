"""Free and minimal pruning and flipping: each weight has a score, whose sign prunes or flips it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from pabzip.errors import RecipeError
from pabzip.init import attach_seeding, dense_parameters, seeded_parameters, seeding
from pabzip.seeds import Frozen, InitSpec, weights
from pabzip.supermask.scores import MakeOptimizer, ScoreRule
from pabzip.unmask.rule import check_start

# The stream that decides which signs `imbalance_signs` flips is the weight's with this bit turned.
_IMBALANCE_BIT = 2**27


class FreePruning(ScoreRule):
    r"""Keeps the weights whose number t is above 0, however many they are.

    A weight is ``w = w0 * m(t)``, with w0 as the seed drew it, and m is 1 above 0 and 0 elsewhere.
    The gradient of m is taken to be 1, so with gradient g of the weight, each step is::

        d <- g * w0 - (1 / M if minimal else 0)       with M weights in the network
        t <- one step of the optimizer by d

    All t begin in (0, ``start``], uniformly drawn from the network's seed: at first every weight
    is kept.

    Args:
        net: a network drawn from a seed, whose seeded weights are float32.
        optimizer: builds what moves the numbers; None is Adam with a learning rate of 3e-3 for a
            network with convolutions, 1e-3 without, as in the paper.
        minimal: subtract the mean of m over all weights from the loss, so that few are pruned.
        start: largest number to begin with.
        penalty: as for `ScoreRule`.
        norm: as for `ScoreRule`.
        frozen: as for `ScoreRule`.

    Raises:
        RecipeError: a value out of range, or a weight that is not float32.
        SeedError: a network that was not drawn from a seed.

    Source: Ivan & Florian 2020, Section 2 (equations 1 to 4) and Table A.2 (Adam's rates). M counts
    the seeded weights alone; in the paper these are all.
    """

    _rates = (1e-3, 3e-3)

    def __init__(
        self,
        net: nn.Module,
        optimizer: MakeOptimizer | None = None,
        *,
        minimal: bool = False,
        start: float = 0.1,
        penalty: float = 0.0,
        norm: int = 2,
        frozen: Frozen | Mapping[str, Frozen] | None = None,
    ):
        check_start(type(self).__name__, start)
        rate = self.published_rate(net)
        self.minimal, self.start = minimal, start
        super().__init__(
            net,
            optimizer or (lambda numbers: torch.optim.Adam(numbers, rate)),
            penalty=penalty,
            norm=norm,
            frozen=frozen,
        )

    @classmethod
    def published_rate(cls, net: nn.Module) -> float:
        """Return Adam's learning rate in the paper, by whether ``net`` has convolutions."""
        return cls._rates[any(weight.dim() > 2 for weight in seeded_parameters(net).values())]

    def _begin(self, name: str) -> Tensor:
        return self.uniform(name, self.start).abs_()

    def _gradient(self, name: str, gradient: Tensor) -> Tensor:
        slope = super()._gradient(name, gradient)
        if self.minimal:
            slope -= 1.0 / sum(weight.numel() for weight in self.weights.values())
        return slope

    def _factors(self) -> Mapping[str, Tensor]:
        return {name: number > 0 for name, number in self.scores.items()}


class FreeFlipping(FreePruning):
    r"""Flips the weights whose number t is below 0, however many they are; prunes none.

    As `FreePruning`, with ``m(t) = sign(t)``; a t of exactly 0 counts as positive. With ``minimal``
    few signs are flipped. Adam's rates are 5e-4 for a network with convolutions, 1e-3 without.

    `pabzip.unmask.LatentSigns` is the same rule by SGD, on a network that may be pruned before: its
    latent number is ``t * sign(w0)``, and it begins with the same numbers.

    Source: Ivan & Florian 2020, Section 3 and Table A.2. For ``minimal`` they name a term "in order
    to constrain the network to flip as few weight signs as possible", by analogy with pruning; here
    it is that of equation 4, with the sign in the place of the mask.
    """

    _rates = (1e-3, 5e-4)

    def _factors(self) -> Mapping[str, Tensor]:
        return {name: 1 - 2 * (number < 0).float() for name, number in self.scores.items()}


def imbalance_signs(net: nn.Module, positive: float) -> None:
    """Flip signs of a network, so that each weight is positive with a given probability.

    The seed draws as many negative weights as positive ones. Of those that there are too many of,
    each is flipped with probability ``abs(2 * positive - 1)``, which numbers of the same seed
    decide. Magnitudes stay. The file stores these flips as it does learned ones: at 0.7 a fifth of
    the weights, about 0.7 bits a kept weight.

    Args:
        net: a network as it was drawn from a seed; its weights change in place.
        positive: p, at least 0, at most 1; 0.5 changes nothing.

    Raises:
        RecipeError: ``positive`` out of range.
        SeedError: a network that was not drawn from a seed.

    Source: Ivan & Florian 2020, Section 2.4.
    """
    if not 0.0 <= positive <= 1.0:
        raise RecipeError(
            f"imbalance_signs: positive: expected a number from 0 to 1, found {positive!r}"
        )
    record, excess = seeding(net), 2.0 * positive - 1.0
    if not excess:
        return
    for name, weight in seeded_parameters(net).items():
        spec = InitSpec("uniform", 1.0, record.specs[name].stream ^ _IMBALANCE_BIT)
        drawn = np.abs(weights(record.seed, spec, 0, weight.numel()))
        chosen = torch.from_numpy(drawn <= abs(excess)).view(weight.shape).to(weight.device)
        with torch.no_grad():
            chosen &= weight < 0 if excess > 0 else weight > 0
            weight.copy_(torch.where(chosen, -weight, weight))


def remove_weights(net: nn.Module, *, into_first: bool = False) -> float:
    """Give every weight of a network of signed constants the magnitude 1.

    ReLU lets a positive factor through. So in a chain of layers without biases, with ReLU between
    them, the inputs may be multiplied by the product of all layers' magnitudes, and the weights be
    plus and minus 1: the outputs are as before, up to rounding. Without the product the largest
    logit is still the same. Masks and flips train the same.

    Call it after `pabzip.init_` with ``scheme="kaiming_signed_constant"`` and before a score rule.
    Rules and files then hold weights of 1 and -1.

    Args:
        net: a network that holds nothing but weights drawn as signed constants; its weights and the
            record of them change in place. That its layers form such a chain is the caller's to
            know: a branch that skips layers would need a factor of its own.
        into_first: put the product into the magnitude of the first weight, and not before the
            inputs; the network then does as before on the inputs as they are.

    Returns:
        What inputs must be multiplied by: the product of the magnitudes, or 1 with ``into_first``.

    Raises:
        RecipeError: a parameter that the seed did not draw, such as a bias, or a weight that is no
            signed constant.
        SeedError: a network that was not drawn from a seed, or a product out of range.

    Source: Ivan & Florian 2020, Section 2.3, equations 5 and 6.
    """
    record, parameters = seeding(net), seeded_parameters(net)
    others = [name for name in record.specs if name not in parameters]
    others += dense_parameters(net)
    if others:
        raise RecipeError(
            "remove_weights: expected a network of weights that the seed drew, found "
            f"{', '.join(others[:3])} besides; leave out biases and batch norm, and seed the "
            "classifier too"
        )
    for name, spec in record.specs.items():
        if spec.distribution != "signed_constant":
            raise RecipeError(
                f"remove_weights: {name}: expected a signed constant, found {spec.distribution}; "
                "draw the network with scheme = kaiming_signed_constant"
            )
    product = float(np.float32(np.prod([spec.scale for spec in record.specs.values()])))
    scales = dict.fromkeys(record.specs, 1.0)
    if into_first:
        scales[next(iter(scales))] = product
    specs = {
        name: InitSpec("signed_constant", scales[name], spec.stream)
        for name, spec in record.specs.items()
    }
    with torch.no_grad():
        for name, weight in parameters.items():
            weight.sign_().mul_(scales[name])
            weight.add_(0.0)  # pruned weights stay +0.0
    attach_seeding(net, replace(record, specs=specs))
    return 1.0 if into_first else product
