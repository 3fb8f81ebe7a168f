"""How far the signs have moved from the seed's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


class SignRecord:
    """Remembers the signs that weights were drawn with and counts those that differ later.

    Costs one byte a weight, on the weights' device. It is made of the freshly drawn network, so a
    run that is continued makes the same record again.

    Args:
        weights: the seeded weights by name, as they were drawn.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter]):
        self._weights = dict(weights)
        self._negative = {name: weight.detach().signbit() for name, weight in weights.items()}
        self.total = sum(weight.numel() for weight in weights.values())

    def flipped(self, masks: Mapping[str, torch.Tensor]) -> float:
        """Return the fraction of the survivors whose sign is not the recorded one.

        Args:
            masks: bool tensors by the weights' names and of their shapes, True for a survivor.
        """
        counts = [
            ((weight.detach().signbit() != self._negative[name]) & masks[name]).sum()
            for name, weight in self._weights.items()
        ]
        survivors = sum(int(mask.sum()) for mask in masks.values())
        return sum(int(count) for count in counts) / max(survivors, 1)
