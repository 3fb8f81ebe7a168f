"""Dense runs cut to the cost of a ticket."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

import pabzip
from pabzip.search import apply_masks
from pabzip.train import PsgRecipe, Recipe, SearchRecipe, SgdRecipe
from pabzip.train.optimizers import shortened


def every_tenth(net: nn.Module) -> Mapping[str, torch.Tensor]:
    masks = {}
    for name, weight in pabzip.seeded_parameters(net).items():
        masks[name] = (torch.arange(weight.numel()) % 10 == 0).view(weight.shape)
    apply_masks(net, masks)
    return masks


def test_epochs_and_milestones_shrink_by_the_ratio_of_the_costs() -> None:
    net = pabzip.init_(nn.Sequential(nn.Flatten(), nn.Linear(40, 50), nn.Linear(50, 10)), 0)
    before = copy.deepcopy(net.state_dict())
    recipe = Recipe(method="dense-sgd-short", epochs=400, search=SearchRecipe(epoch=3, shots=2))
    short = shortened(recipe, net, (40,), every_tenth)
    # A tenth of the weights; of 3 * 32 * 32 a step, 32 * 32 + 16 * (8 + 8) are left: 1 / 24 in all.
    assert short.epochs == 17
    assert short.sgd.milestones == (3, 5)
    assert (short.search.epoch, short.method) == (0, "dense-sgd-short")
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    bits = PsgRecipe(input_bits=32, weight_bits=32, gradient_bits=32)
    wide = Recipe(epochs=400, psg=bits, sgd=SgdRecipe(milestones=()))
    assert shortened(wide, net, (40,), every_tenth).epochs == 40


def test_at_least_one_epoch_is_left() -> None:
    net = pabzip.init_(nn.Linear(40, 50), 0)
    recipe = Recipe(epochs=3, sgd=SgdRecipe(milestones=(1, 2)))
    short = shortened(recipe, net, (40,), every_tenth)
    assert (short.epochs, short.sgd.milestones) == (1, (1,))
