"""BitOPs against numbers worked out by hand, and against the paper's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pabzip import models
from pabzip.train import bit_operations, layer_costs

FULL = 3 * 32 * 32


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.fc = nn.Linear(3 * 8 * 8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(self.norm(self.conv(x)))
        return self.fc(x.flatten(1))


# conv: 4x4 positions, 4 outputs, 1 input each, 3x3; up: 4x4 positions, 4 to 3 channels, 2x2.
MACS = {"conv.weight": 16 * 4 * 1 * 9, "up.weight": 16 * 4 * 3 * 4, "fc.weight": 192 * 5}


def test_a_dense_net_costs_three_products_of_full_precision() -> None:
    net = Net()
    assert {cost.name: cost.macs for cost in layer_costs(net, (2, 8, 8))} == MACS
    assert bit_operations(net, (2, 8, 8)) == sum(MACS.values()) * FULL


def test_masks_and_bits_count_for_the_masked_layers_alone() -> None:
    mask = torch.zeros(4, 1, 3, 3, dtype=torch.bool)
    mask.view(-1)[:9] = True
    found = bit_operations(
        Net(), (2, 8, 8), {"conv.weight": mask}, input_bits=8, weight_bits=4, gradient_bits=16
    )
    conv = MACS["conv.weight"] * 0.25 * (32 * 32 + 16 * 4 + 16 * 8)
    assert found == conv + (MACS["up.weight"] + MACS["fc.weight"]) * FULL


def test_counting_leaves_the_network_as_it_was() -> None:
    net = Net()
    net.norm.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    bit_operations(net, (2, 8, 8))
    assert net.training
    assert not net.norm.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not net.conv._forward_hooks


def test_a_layer_that_runs_twice_counts_twice() -> None:
    layer = nn.Linear(3, 3)
    assert bit_operations(nn.Sequential(layer, layer), (3,)) == 2 * 9 * FULL


def test_resnet18_costs_what_the_paper_says() -> None:
    net = models.build("resnet18")
    dense = bit_operations(net, (3, 32, 32))
    assert dense == pytest.approx(1.706e12, rel=1e-3)  # Table 1: 1.71 Tr
    masks = {
        name: torch.arange(value.numel()).view(value.shape) % 10 == 0
        for name, value in net.named_parameters()
        if value.dim() > 1
    }
    kept = bit_operations(net, (3, 32, 32), masks)
    bits = {"input_bits": 8, "weight_bits": 8, "gradient_bits": 16}
    assert kept == pytest.approx(dense / 10, rel=1e-3)
    assert bit_operations(net, (3, 32, 32), masks, **bits) == pytest.approx(kept * 1280 / 3072)
