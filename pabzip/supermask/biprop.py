"""Biprop: binary weights with one magnitude a layer, of which the scores keep some."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from pabzip.errors import RecipeError
from pabzip.init import attach_seeding, seeding
from pabzip.seeds import Frozen, InitSpec
from pabzip.supermask.edge_popup import EdgePopup
from pabzip.supermask.scores import MakeOptimizer

GRADIENTS = ("published", "gain", "paper")


class Biprop(EdgePopup):
    r"""Finds a multi-prize ticket: binary weights, of which those with the largest scores are kept.

    Each weight is ``w = gain * sign(w0)`` or 0, with w0 as the seed drew it. The gain is the mean
    of ``|w0|`` over the weights that a tensor keeps now, so it follows the mask in every step. With
    gradient g of the weight and score s::

        d <- g * w0 * sign(s)                  gradient = "published"
        d <- g * gain * sign(w0) * sign(s)     gradient = "gain"
        d <- g * gain * sign(w0)               gradient = "paper"

    The paper ranks ``|s|`` and takes the gradient of the mask by s to be 1, as in its Section
    2.2.1. For a negative s that moves its size the wrong way: on the digits half the accuracy is
    lost. Its code takes the sign of s in, and the drawn weight in the place of the binary one.

    A network that computes with the sign of its activations, too (``binary_activations``), is
    searched for MPT-1/1 by this same rule; every other one for MPT-1/32.

    From the first moment on, the network's record says that its weights are signed constants of
    these gains, of the streams that drew w0: signs depend on the stream alone, so a file holds the
    mask, and one scale a tensor. The record reads the gains when it is asked, so the network can be
    packed after any step.

    Args:
        net: a network drawn from a seed, whose seeded weights are float32.
        optimizer: builds what moves the scores (`ScoreRule`).
        keep_ratio: fraction of the weights that are kept, above 0, at most 1.
        gradient: one of `GRADIENTS`.
        scope: as for `EdgePopup`; the paper has ``"layer"``.
        penalty: as for `ScoreRule`.
        norm: as for `ScoreRule`.
        frozen: as for `EdgePopup`.

    Attributes:
        gains: by name of the weight, float32 scalars.

    Raises:
        RecipeError: a value out of range, or a weight that is not float32.
        SeedError: a network that was not drawn from a seed.

    Source: Diffenderfer & Kailkhura 2021 (Multi-Prize Tickets), Algorithm 1 and Section 2.2.1.
    Deviation from its code, which divides by ``int(keep_ratio * n)`` where
    ``n - int((1 - keep_ratio) * n)`` weights are kept: here, as in the paper, it is the same count.
    Its configurations draw w0 larger by ``(1 - keep_ratio) ** -0.5``, which batch norm undoes.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: MakeOptimizer,
        keep_ratio: float,
        *,
        gradient: str = "published",
        scope: str = "layer",
        penalty: float = 0.0,
        norm: int = 2,
        frozen: Frozen | Mapping[str, Frozen] | None = None,
    ):
        if gradient not in GRADIENTS:
            raise RecipeError(
                f"Biprop: gradient: expected one of {', '.join(GRADIENTS)}, found {gradient!r}"
            )
        self.gradient = gradient
        self.gains: dict[str, Tensor] = {}
        super().__init__(
            net, optimizer, keep_ratio, scope=scope, penalty=penalty, norm=norm, frozen=frozen
        )
        record = seeding(net)
        attach_seeding(net, replace(record, specs=_GainSpecs(record.specs, self.gains)))

    def _gradient(self, name: str, gradient: Tensor) -> Tensor:
        if self.gradient == "published":
            return super()._gradient(name, gradient)
        slope = gradient * self.gains[name] * self.drawn[name].sign()
        return slope if self.gradient == "paper" else slope * self.scores[name].sign()

    def _factors(self) -> Mapping[str, Tensor]:
        masks = super()._factors()
        for name, mask in masks.items():
            sizes = self.drawn[name].abs()
            if name in self.frozen:
                mask = mask | self._kept_for_good[name]
            kept = torch.count_nonzero(mask)
            # Of a tensor that keeps nothing the gain matters to no weight, but must be a scale.
            gain = torch.where(kept > 0, (sizes * mask).sum() / kept, sizes.mean())
            self.gains.setdefault(name, torch.empty_like(gain)).copy_(gain)
        return masks

    def _values(self, name: str) -> Tensor:
        return self.drawn[name].sign() * self.gains[name]


class _GainSpecs(Mapping[str, InitSpec]):
    """Init specs by name: signed constants, whose scales are the gains at the time of reading.

    Those without a gain, of buffers, stay as they are.
    """

    def __init__(self, specs: Mapping[str, InitSpec], gains: Mapping[str, Tensor]):
        self._specs = dict(specs)
        self._gains = gains

    def __getitem__(self, name: str) -> InitSpec:
        spec, gain = self._specs[name], self._gains.get(name)
        return spec if gain is None else InitSpec("signed_constant", float(gain), spec.stream)

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)
