"""How far the signs have moved from the seed's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


class SignRecord:
    """Remembers the signs of a ticket's survivors and counts those that differ later.

    Costs one byte a weight, on the weights' device.

    Args:
        weights: the seeded weights by name, pruned but not yet unmasked.
        masks: bool tensors by the same names and of the same shapes, True for a survivor.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], masks: Mapping[str, torch.Tensor]):
        self._weights = dict(weights)
        self._masks = dict(masks)
        self._negative = {name: weight.detach().signbit() for name, weight in weights.items()}
        self.total = sum(mask.numel() for mask in masks.values())
        self.survivors = sum(int(mask.sum()) for mask in masks.values())

    def flipped(self) -> float:
        """Return the fraction of the survivors whose sign is not the recorded one."""
        counts = [
            ((weight.detach().signbit() != self._negative[name]) & self._masks[name]).sum()
            for name, weight in self._weights.items()
        ]
        return sum(int(count) for count in counts) / max(self.survivors, 1)
