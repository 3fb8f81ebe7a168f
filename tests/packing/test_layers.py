"""Weights of every kind of layer and code, packed and loaded bit for bit by every coder."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from torch import nn

import pabzip

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "grouped": lambda: nn.Conv2d(8, 12, 3, groups=4),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, groups=8),
    "linear after flatten": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10)
    ),
    "conv1d": lambda: nn.Conv1d(6, 10, 5),
    "conv3d": lambda: nn.Conv3d(3, 5, 3),
    "transposed": lambda: nn.ConvTranspose2d(6, 4, 3),
    "one weight": lambda: nn.Linear(1, 1),
    "shared with an embedding": lambda: shared(),
}


def shared() -> nn.Module:
    net = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 30, bias=False))
    net[1].weight = net[0].weight  # type: ignore[union-attr]
    return net


def mask_only(weight: torch.Tensor, random: torch.Tensor) -> None:
    weight[random < 0.6] = 0


def signs_only(weight: torch.Tensor, random: torch.Tensor) -> None:
    weight[random < 0.3] *= -1


def both(weight: torch.Tensor, random: torch.Tensor) -> None:
    weight[random < 0.3] *= -1
    weight[random > 0.5] = 0


def nothing_left(weight: torch.Tensor, _random: torch.Tensor) -> None:
    weight.zero_()


def untouched(_weight: torch.Tensor, _random: torch.Tensor) -> None:
    pass


@pytest.mark.parametrize("coder", ["huffman", "context"])
@pytest.mark.parametrize("change", [mask_only, signs_only, both, nothing_left, untouched])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("scheme", ["kaiming_normal", "kaiming_signed_constant"])
def test_packs_and_loads_bit_for_bit(
    layer: str, change: Callable[[torch.Tensor, torch.Tensor], None], coder: str, scheme: str
) -> None:
    net = pabzip.init_(LAYERS[layer](), seed=77, scheme=scheme)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in pabzip.seeded_parameters(net).values():
            change(weight, torch.rand(weight.shape, generator=generator))
    file = io.BytesIO()
    info = pabzip.pack(net, file, coder=coder)
    assert {row["coder"] for row in info["tensors"] if row["kind"] == "seeded"} == {coder}
    found = pabzip.load_file(file.getvalue(), verify=True)
    expected = net.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("coder", ["huffman", "context"])
def test_ternary_embedding_weights(coder: str) -> None:
    net = nn.Embedding(40, 20)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        net.weight.copy_(torch.randint(-1, 2, (40, 20), generator=generator) * 0.25)
        net.weight[7:9] *= 3
    file = io.BytesIO()
    info = pabzip.pack(net, file, coder=coder, ternary=True)
    assert info["tensors"][0]["kind"] == "seeded"
    found = pabzip.load_file(file.getvalue(), verify=True)
    assert torch.equal(found["weight"], net.weight)
