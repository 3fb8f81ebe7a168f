"""The optimizers of every method: SGD with masks against numpy, later pruning, and their state."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pabzip
from pabzip.registry import METHODS
from pabzip.search import apply_masks
from pabzip.train import Recipe, merge
from pabzip.train.config import method_of
from pabzip.train.methods import MilestoneDecay
from pabzip.train.optimizers import Optimizers

Masks = dict[str, torch.Tensor]


def network(seed: int = 0) -> tuple[nn.Module, Masks]:
    """A seeded convolution and a seeded Linear, half pruned, with dense parameters beside them."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5, generator=generator)
    pabzip.init_(net, seed)
    masks = {
        name: torch.rand(weight.shape, generator=generator) < 0.5
        for name, weight in pabzip.seeded_parameters(net).items()
    }
    apply_masks(net, masks)
    return net, masks


def recipe_of(method: str, **changes: Any) -> Recipe:
    base = {"method": method, "bop": {"adaptivity_rate": 0.3, "decay_every": 2},
            "sgd": {"milestones": [2]}}  # fmt: skip
    return merge(merge(Recipe(), base), changes)


def backward(net: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(8, 1, 4, 4, generator=generator)
    labels = torch.randint(0, 3, (8,), generator=generator)
    nn.functional.cross_entropy(net(inputs), labels).backward()  # type: ignore[no-untyped-call]


def train(net: nn.Module, optimizers: Optimizers, steps: range) -> list[int]:
    flips = []
    for step in steps:
        optimizers.zero_grad()
        backward(net, step)
        optimizers.step()
        flips.append(int(optimizers.flips))
        if step % 3 == 2:
            optimizers.end_epoch()
    return flips


def assert_pruned(net: nn.Module, masks: Masks) -> None:
    for name, mask in masks.items():
        weight = net.get_parameter(name).detach()
        assert not weight[~mask].view(torch.int32).any(), name  # +0.0 has no bit set
        assert weight[mask].all(), name


MASKED = [name for name in METHODS if method_of(Recipe(method=name)).masked]


@pytest.mark.parametrize("method", MASKED)
def test_pruned_weights_stay_plus_zero_and_only_magnitudes_of_baselines_move(method: str) -> None:
    net, masks = network()
    before = copy.deepcopy(net.state_dict())
    optimizers = Optimizers(net, recipe_of(method), masks)
    flips = train(net, optimizers, range(9))
    assert_pruned(net, masks)
    seeded = method_of(Recipe(method=method)).seeded
    assert (sum(flips) > 0) == seeded
    for name in masks:
        weight = net.get_parameter(name).detach()
        assert torch.equal(weight.abs(), before[name].abs()) == seeded, name
        assert not torch.equal(weight, before[name])
    assert not torch.equal(net[1].bias, before["1.bias"])


def test_a_dense_run_moves_every_weight() -> None:
    net, _ = network()
    optimizers = Optimizers(net, recipe_of("dense-sgd"), {})
    before = copy.deepcopy(net)
    train(net, optimizers, range(1))
    own = torch.optim.SGD(before.parameters(), 0.1, 0.9, weight_decay=5e-4)
    backward(before, 0)
    own.step()
    assert all(
        torch.equal(a, b) for a, b in zip(net.parameters(), before.parameters(), strict=True)
    )


def test_masked_sgd_matches_numpy_step_by_step() -> None:
    net, masks = network()
    optimizers = Optimizers(net, recipe_of("sgd"), masks)
    names = [name for name, _ in net.named_parameters()]
    weights = {name: net.get_parameter(name).detach().numpy().copy() for name in names}
    buffers: dict[str, np.ndarray] = {}
    rate = np.float32(0.1)
    for step in range(6):
        optimizers.zero_grad()
        backward(net, step)
        for name in names:
            gradient = net.get_parameter(name).grad
            assert gradient is not None
            g = gradient.numpy().copy()
            if name in masks:
                g[~masks[name].numpy()] = 0
            g = g + np.float32(5e-4) * weights[name]
            buffers[name] = g if step == 0 else np.float32(0.9) * buffers[name] + g
            weights[name] = weights[name] - rate * buffers[name]
        optimizers.step()
        for name in names:
            found = net.get_parameter(name).detach().numpy()
            np.testing.assert_allclose(found, weights[name], rtol=2e-6, atol=1e-7, err_msg=name)
        if step % 3 == 2:
            optimizers.end_epoch()
            rate = np.float32(0.1 * 0.1) if step == 5 else rate
    assert_pruned(net, masks)


@pytest.mark.parametrize("method", METHODS)
def test_the_state_comes_back_to_the_bit(method: str) -> None:
    net, masks = network()
    masks = masks if method in MASKED else {}
    recipe = recipe_of(method, signsgd={"momentum": 0.5})
    optimizers = Optimizers(net, recipe, masks)
    train(net, optimizers, range(6))
    file = io.BytesIO()
    torch.save(optimizers.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    kept = copy.deepcopy(state)
    twin, _ = network()  # as a resumed run builds it, before it loads what it had become
    resumed = Optimizers(twin, recipe, masks)
    twin.load_state_dict(net.state_dict())
    resumed.load_state_dict(state)
    assert train(net, optimizers, range(6, 15)) == train(twin, resumed, range(6, 15))
    for (name, a), b in zip(net.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert_equal(state, kept)
    assert_equal(optimizers.state_dict(), resumed.state_dict())


def assert_equal(found: Any, expected: Any) -> None:
    """Compare nested plain values and tensors."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, list):
        for left, right in zip(found, expected, strict=True):
            assert_equal(left, right)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize("method", MASKED)
def test_a_later_search_forgets_what_it_prunes(method: str) -> None:
    net, masks = network()
    recipe = recipe_of(method, signsgd={"momentum": 0.5})
    optimizers = Optimizers(net, recipe, masks)
    train(net, optimizers, range(6))
    fewer = {}
    for name, mask in masks.items():
        positions = torch.arange(mask.numel()).view(mask.shape)
        fewer[name] = mask & (positions % 3 != 0)
    apply_masks(net, fewer)
    optimizers.prune(fewer)
    parts = optimizers.state_dict()["parts"].values()
    held = [v for part in parts for s in part["state"].values() for v in s.values()]
    for mask in fewer.values():
        of_mask = [v for v in held if isinstance(v, torch.Tensor) and v.shape == mask.shape]
        assert of_mask
        assert not any(v[~mask].any() for v in of_mask)
    train(net, optimizers, range(6, 12))
    assert_pruned(net, fewer)


def test_milestones_decay_the_rate_after_their_epoch() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    ours = torch.optim.SGD([parameter], 0.1)
    theirs = torch.optim.SGD([parameter], 0.1)
    schedule = MilestoneDecay(ours, (2, 3), 0.1)
    torchs = torch.optim.lr_scheduler.MultiStepLR(theirs, [2, 3], 0.1)
    for epoch in range(1, 5):
        ours.step()
        theirs.step()
        schedule.step()
        torchs.step()
        assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
        assert schedule.state_dict() == {"epoch": epoch}


def test_sgd_follows_a_cosine_to_zero_and_resumes_on_it() -> None:
    recipe = recipe_of("biprop", epochs=4, sgd={"schedule": "cosine"}, classifier="seeded")
    optimizers, other = (Optimizers(network()[0], recipe, {}) for _ in range(2))
    rates = []
    for _ in range(4):
        rates.append(optimizers._parts["sgd"].param_groups[0]["lr"])
        optimizers.step()
        optimizers.end_epoch()
        other.load_state_dict(optimizers.state_dict())
    np.testing.assert_allclose(rates, [0.05 * (1 + np.cos(np.pi * e / 4)) for e in range(4)])
    for each in (optimizers, other):
        assert each._parts["sgd"].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)
