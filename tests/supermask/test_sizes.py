"""What files of learned masks and signs cost: no more than their entropy, but for a trace."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from torch import nn

import pabzip
from pabzip.supermask import Biprop, EdgePopup, FreeFlipping

MOST_BESIDE = 400
"""Bytes of a file of these small headers that are no codes."""


def linear() -> nn.Module:
    layers = nn.Linear(784, 300, bias=False), nn.Linear(300, 200, bias=False)
    return nn.Sequential(*layers, nn.Linear(200, 10, bias=False))


def convolutions() -> nn.Module:
    layers = nn.Conv2d(3, 64, 3, bias=False), nn.Conv2d(64, 128, 3, bias=False)
    return nn.Sequential(
        *layers, nn.Conv2d(128, 192, 3, bias=False), nn.Conv2d(192, 10, 1, bias=False)
    )


def entropy_bytes(net: nn.Module) -> float:
    """Return the order-0 entropy of the mask, layer by layer."""
    bits = 0.0
    for weight in pabzip.init.seeded_parameters(net).values():
        share = float((weight != 0).double().mean())
        bits -= weight.numel() * (share * np.log2(share) + (1 - share) * np.log2(1 - share))
    return bits / 8


@pytest.mark.parametrize("build", [linear, convolutions])
@pytest.mark.parametrize("kind", [Biprop, EdgePopup])
def test_a_mask_costs_its_entropy(build, kind):
    net = pabzip.init_(build(), 3)
    kind(net, lambda scores: torch.optim.SGD(scores, 0.1), 0.2)
    report = pabzip.pack(net, BytesIO())
    assert report.survivors == pytest.approx(0.2 * report.weights, rel=1e-3)
    assert report.codes_bytes <= 1.01 * entropy_bytes(net)
    assert report.bytes - report.codes_bytes <= MOST_BESIDE


@pytest.mark.parametrize("scheme", ["kaiming_normal", "kaiming_signed_constant"])
@pytest.mark.parametrize("build", [linear, convolutions])
def test_a_sign_costs_a_bit(build, scheme):
    net = pabzip.init_(build(), 3, scheme)
    rule = FreeFlipping(net)
    for number in rule.scores.values():
        number.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    rule.load_state_dict(rule.state_dict())  # writes the weights
    report = pabzip.pack(net, BytesIO())
    assert report.survivors == report.weights
    assert report.codes_bytes <= 1.005 * report.weights / 8
    assert report.bytes - report.codes_bytes <= MOST_BESIDE
