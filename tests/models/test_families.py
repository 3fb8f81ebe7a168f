"""Search, unmasking, packing and export work on every family of architectures, unchanged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pabzip
from pabzip import models
from pabzip.search import synflow
from pabzip.unmask import Bop, PsgConfig, apply_psg

FAMILIES = {
    "wideresnet28": {"width": 4, "widen": 2, "image_size": 8},
    "vgg11": {"width": 8},
    "vgg-small": {"width": 8, "image_size": 16},
    "mobilenetv2": {"width": 16, "image_size": 16},
}
EXPORTED = {**FAMILIES, "resnet18-imagenet": {"num_classes": 4, "image_size": 32}}


class Grouped(nn.Module):
    """Grouped, depthwise with a multiplier, and a transposed convolution, as a user may write."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1, groups=2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=8, bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 8, 2, stride=2, groups=4, bias=False),
            nn.ReLU(),
        )
        self.fc = nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.layers(images).mean(dim=(2, 3)))
        return logits


def network(name):
    """Return a small network of a family, drawn from a seed, and its input shape."""
    if name == "grouped":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            net = Grouped()
        return pabzip.init_(net, seed=5), (4, 8, 8)
    net = models.build(name, EXPORTED[name])
    return pabzip.init_(net, seed=5), models.input_shape(name, EXPORTED[name])


def step(net, shape, optimizer):
    """Take one step on random images."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, *shape, generator=generator)
    net.zero_grad()
    logits = net(images)
    F.cross_entropy(logits, torch.arange(4) % logits.shape[1]).backward()
    optimizer.step()


@pytest.mark.parametrize("name", [*FAMILIES, "grouped"])
@pytest.mark.parametrize("psg", [False, True])
def test_searched_masks_hold_while_signs_flip(name, psg):
    net, shape = network(name)
    magnitudes = {key: value.detach().abs() for key, value in pabzip.seeded_parameters(net).items()}
    masks = synflow(net, 0.4, input_shape=shape, iterations=5)
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == total - int(0.6 * total)
    before = {key: value.detach().clone() for key, value in pabzip.seeded_parameters(net).items()}
    if psg:
        apply_psg(net, PsgConfig())
    # A threshold of zero flips every survivor whose gradient has its own sign.
    optimizer = Bop(net, adaptivity_rate=1.0, threshold=0.0)
    step(net, shape, optimizer)
    flipped = 0
    for key, weight in pabzip.seeded_parameters(net).items():
        assert torch.equal(weight.abs(), magnitudes[key] * masks[key]), key
        assert not torch.signbit(weight[~masks[key]]).any(), key
        flipped += int((weight != before[key]).sum())
    assert flipped == int(optimizer.flips)
    assert 0 < flipped < round(0.4 * total)


@pytest.mark.parametrize("name", FAMILIES)
def test_predictive_gradients_of_enough_bits_are_the_exact_ones(name):
    gradients = []
    for psg in (False, True):
        net, shape = network(name)
        net.double()
        if psg:
            config = PsgConfig(input_bits=32, weight_bits=32, gradient_bits=32, behavior="all")
            apply_psg(net, config)
        images = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1)).double()
        F.cross_entropy(net(images), torch.arange(4)).backward()
        gradients.append({key: value.grad for key, value in pabzip.seeded_parameters(net).items()})
    exact, predicted = gradients
    for key, gradient in exact.items():
        error = (predicted[key] - gradient).abs().max() / gradient.abs().max()
        assert error < 1e-3, key


@pytest.mark.parametrize("name", EXPORTED)
def test_a_packed_network_loads_and_exports(name, tmp_path):
    net, shape = network(name)
    pabzip.search.apply_masks(
        net,
        {
            key: torch.arange(value.numel()).reshape(value.shape) % 3 > 0
            for key, value in pabzip.seeded_parameters(net).items()
        },
    )
    step(net, shape, Bop(net, adaptivity_rate=1.0, threshold=0.0))
    net.eval()
    path = tmp_path / "net.pabz"
    pabzip.pack(net, path)
    loaded = pabzip.load(path, verify=True)
    assert type(loaded) is type(net)
    assert loaded.pabzip_arch == net.pabzip_arch
    state = loaded.state_dict()
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())

    from pabzip.export import export_ticket
    from pabzip.runtime.onnx_session import open_onnx, session_logits

    export_ticket(path, tmp_path / "net.onnx")
    images = np.random.default_rng(1).standard_normal((2, *shape), dtype=np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(images)).numpy()
    found = session_logits(open_onnx(tmp_path / "net.onnx"))(images)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
