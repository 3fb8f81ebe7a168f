"""DataParallel and other wrappers: packing, checkpoints, loading and export look inside them."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

import pabzip
from pabzip.init import unwrap


@pytest.fixture
def net() -> nn.Module:
    return pabzip.init_(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), seed=3)


def wrappers(net: nn.Module) -> list[nn.Module]:
    compiled = torch.compile(net, backend="eager")
    return [net, nn.DataParallel(net), compiled, nn.DataParallel(compiled)]


def test_the_network_inside_is_found(net: nn.Module) -> None:
    assert all(unwrap(wrapped) is net for wrapped in wrappers(net))


def test_every_wrapper_packs_to_the_same_file(net: nn.Module) -> None:
    files = [io.BytesIO() for _ in wrappers(net)]
    for wrapped, file in zip(wrappers(net), files, strict=True):
        pabzip.pack(wrapped, file)
    assert len({file.getvalue() for file in files}) == 1


def test_every_wrapper_is_loaded_into(net: nn.Module) -> None:
    file = io.BytesIO()
    pabzip.pack(net, file)
    expected = net[0].weight.detach().clone()
    for wrapped in wrappers(net):
        nn.init.zeros_(net[0].weight)
        assert pabzip.load_into(wrapped, file.getvalue()) is wrapped
        assert torch.equal(net[0].weight, expected)
