"""SynFlow as it was published to run: torch's own gradients, one sort of all scores a round.

Each round takes the absolute value of all state, the gradient of the summed outputs for an input
of ones, and puts the signs back; then one threshold over the scores of all weights, pruned ones
among them, masks what is not above it.

Source: Tanaka et al. 2020, Algorithm 1, and the structure of the code published with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def published_synflow(
    net: nn.Module,
    weights: Mapping[str, nn.Parameter],
    keep_ratio: float,
    input_shape: Sequence[int],
    iterations: int,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Return the masks of ``weights``; ``net`` is cast to ``dtype`` and pruned on the way.

    Args:
        net: the network.
        weights: its weights to search, by name.
        keep_ratio: fraction that survives.
        input_shape: of one input.
        iterations: rounds, on the exponential schedule.
        dtype: of all of it.
    """
    net.eval().to(dtype)
    masks = {name: torch.ones_like(weight) for name, weight in weights.items()}
    ones = torch.ones(1, *input_shape, dtype=dtype)
    for iteration in range(1, iterations + 1):
        with torch.no_grad():
            for name, weight in weights.items():
                weight.mul_(masks[name])
            signs = {name: torch.sign(value) for name, value in net.state_dict().items()}
            for value in net.state_dict().values():
                value.abs_()
        net(ones).sum().backward()
        scores = {}
        with torch.no_grad():
            for name, weight in weights.items():
                scores[name] = (weight.grad * weight).abs()
            for name, value in net.state_dict().items():
                value.mul_(signs[name])
        net.zero_grad()
        together = torch.cat([score.flatten() for score in scores.values()])
        pruned = len(together) - round(keep_ratio ** (iteration / iterations) * len(together))
        if pruned:
            threshold = torch.kthvalue(together, pruned).values
            masks = {name: (score > threshold).to(dtype) for name, score in scores.items()}
    return {name: mask.bool() for name, mask in masks.items()}
