"""Cut a dense run to the cost of the ticket that it is compared with."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import nn

from pabzip.train.bitops import bit_operations
from pabzip.train.recipes import Recipe

Search = Callable[[nn.Module], Mapping[str, torch.Tensor]]


def shortened(
    recipe: Recipe, net: nn.Module, input_shape: tuple[int, ...], search: Search
) -> Recipe:
    """Return ``recipe`` with so many epochs that they cost what ``pab-bop-psg`` would.

    Epochs and milestones are scaled by the ratio of the bit operations of a step, and rounded; at
    least one epoch remains, and milestones that fall together count once.

    Args:
        recipe: of a dense run; ``epochs``, ``keep_ratio``, ``search``, ``psg`` and ``sgd`` decide.
        net: the network, drawn from its seed; stays as it is.
        input_shape: shape of one sample without the batch.
        search: prunes the network that it is given as the ticket would be, and returns the masks.

    Source: Peek-a-Boo, Section 4.1 (Dense-SGD-Short) and Table 1: 0.30 Tr of 1.71 Tr for ResNet-18
    leaves 35 of 200 epochs. Where the recipe prunes in the midst of training, the cost is that of
    the last mask throughout.
    """
    masks = search(copy.deepcopy(net))
    psg = recipe.psg
    cheap = bit_operations(
        net,
        input_shape,
        masks,
        input_bits=psg.input_bits,
        weight_bits=psg.weight_bits,
        gradient_bits=psg.gradient_bits,
    )
    ratio = cheap / bit_operations(net, input_shape)
    milestones = sorted({max(1, round(epoch * ratio)) for epoch in recipe.sgd.milestones})
    return dataclasses.replace(
        recipe,
        epochs=max(1, round(recipe.epochs * ratio)),
        sgd=dataclasses.replace(recipe.sgd, milestones=tuple(milestones)),
        # The dense network is not pruned, so nothing happens at the epochs that the search names.
        search=dataclasses.replace(recipe.search, epoch=0, shots=1),
    )
