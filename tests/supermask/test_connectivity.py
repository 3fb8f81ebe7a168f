"""Free and minimal pruning and flipping, against a plain statement of the paper's equations."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import pabzip
from pabzip.errors import RecipeError
from pabzip.init import Seeding, attach_seeding, seeding
from pabzip.seeds import InitSpec
from pabzip.supermask import FreeFlipping, FreePruning, imbalance_signs, remove_weights
from pabzip.unmask import LatentSigns

INPUTS = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(16) % 3


def network(scheme: str = "kaiming_normal", **options) -> nn.Sequential:
    layers = nn.Linear(6, 12, bias=False), nn.ReLU(), nn.Linear(12, 8, bias=False), nn.ReLU()
    return pabzip.init_(nn.Sequential(*layers, nn.Linear(8, 3, bias=False)), 7, scheme, **options)


def train(net: nn.Module, rule, steps: int = 1) -> None:
    for _ in range(steps):
        rule.zero_grad()
        nn.functional.cross_entropy(net(INPUTS), LABELS).backward()
        rule.step()


def pruned(t: np.ndarray) -> np.ndarray:
    return np.where(t > 0, 1.0, 0.0)


def flipped(t: np.ndarray) -> np.ndarray:
    return np.where(t >= 0, 1.0, -1.0)


@pytest.mark.parametrize(("kind", "m"), [(FreePruning, pruned), (FreeFlipping, flipped)])
@pytest.mark.parametrize("minimal", [False, True])
def test_steps_are_those_of_the_paper_with_adam(kind, m, minimal):
    net = network()
    drawn = [weight.detach().double().numpy().copy() for weight in net.parameters()]
    rule = kind(net, lambda numbers: torch.optim.Adam(numbers, 0.02), minimal=minimal)
    numbers = [number.double().numpy().copy() for number in rule.scores.values()]
    count = sum(number.size for number in numbers)
    assert all(((number > 0) & (number <= np.float32(0.1))).all() for number in numbers)
    assert max(number.max() for number in numbers) > 0.09
    first, second = ([np.zeros_like(number) for number in numbers] for _ in range(2))
    for step in range(1, 16):
        for weight, origin, number in zip(net.parameters(), drawn, numbers, strict=True):
            np.testing.assert_array_equal(weight.detach().numpy(), origin * m(number))
        rule.zero_grad()
        nn.functional.cross_entropy(net(INPUTS), LABELS).backward()
        for i, weight in enumerate(net.parameters()):
            slope = weight.grad.double().numpy() * drawn[i] - (1 / count if minimal else 0)
            first[i] = 0.9 * first[i] + 0.1 * slope
            second[i] = 0.999 * second[i] + 0.001 * slope**2
            mean, square = first[i] / (1 - 0.9**step), second[i] / (1 - 0.999**step)
            numbers[i] = numbers[i] - 0.02 * mean / (np.sqrt(square) + 1e-8)
        rule.step()
        for found, expected in zip(rule.scores.values(), numbers, strict=True):
            np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-5)
    assert any((m(number) != 1).any() for number in numbers)


def test_minimal_keeps_or_leaves_more_than_free():
    for kind in (FreePruning, FreeFlipping):
        changed = {}
        for minimal in (False, True):
            net = network()
            before = [weight.detach().clone() for weight in net.parameters()]
            train(net, kind(net, minimal=minimal), 400)
            changed[minimal] = sum(
                int((weight != old).sum())
                for weight, old in zip(net.parameters(), before, strict=True)
            )
        assert 0 < changed[True] < 0.8 * changed[False]


@pytest.mark.parametrize(
    ("kind", "linear", "convolution"), [(FreePruning, 1e-3, 3e-3), (FreeFlipping, 1e-3, 5e-4)]
)
def test_adams_rates_are_the_papers(kind, linear, convolution):
    conv = pabzip.init_(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 2)), 0)
    assert kind(network()).param_groups[0]["lr"] == linear
    assert kind(conv).param_groups[0]["lr"] == convolution
    assert isinstance(kind(conv)._optimizer, torch.optim.Adam)


def test_flipping_by_sgd_is_latent_signs():
    net, other = network(), network()
    rule = FreeFlipping(net, lambda t: torch.optim.SGD(t, 0.3, 0.9, weight_decay=1e-3))
    latent = LatentSigns(other, 0.3, 0.9, 1e-3)
    for _ in range(30):
        train(net, rule)
        train(other, latent)
        for one, two in zip(net.parameters(), other.parameters(), strict=True):
            assert torch.equal(one, two)
    assert any((number < 0).any() for number in rule.scores.values())


def test_flipped_networks_pack_and_load(tmp_path):
    net, again = network(), network()
    train(net, FreeFlipping(net, lambda t: torch.optim.Adam(t, 0.05)), 20)
    pabzip.pack(net, tmp_path / "net.pabz")
    ticket = pabzip.open(tmp_path / "net.pabz")
    codes = np.concatenate([ticket.codes(name).ravel() for name in seeding(net).specs])
    assert set(np.unique(codes)) == {-1, 1}
    pabzip.load_into(again, tmp_path / "net.pabz")
    for one, other in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("into_first", [False, True])
def test_without_magnitudes_a_network_does_the_same(into_first):
    net = network("kaiming_signed_constant")
    magnitudes = [float(weight.detach().abs().max()) for weight in net.parameters()]
    other = copy.deepcopy(net)
    factor = remove_weights(other, into_first=into_first)
    assert factor == pytest.approx(1.0 if into_first else math.prod(magnitudes))
    for index, (weight, old) in enumerate(zip(other.parameters(), net.parameters(), strict=True)):
        assert torch.equal(weight.sign(), old.sign())
        size = math.prod(magnitudes) if into_first and index == 0 else 1.0
        torch.testing.assert_close(weight.abs(), torch.full_like(weight, size))
    inputs = torch.randn(1000, 6)
    torch.testing.assert_close(other(inputs * factor), net(inputs))
    # So few units tie now and then, and rounding breaks ties.
    first, second = net(inputs).topk(2).values.unbind(1)
    clear = first - second > 1e-5
    assert clear.float().mean() > 0.8
    assert torch.equal(other(inputs).argmax(1)[clear], net(inputs).argmax(1)[clear])


def test_without_magnitudes_of_powers_of_two_a_network_trains_to_the_same_bits():
    net = network("kaiming_signed_constant")
    record = seeding(net)
    specs = {
        name: InitSpec("signed_constant", size, spec.stream)
        for size, (name, spec) in zip((0.5, 0.25, 0.5), record.specs.items(), strict=True)
    }
    attach_seeding(net, Seeding(record.seed, specs))
    with torch.no_grad():
        for weight, spec in zip(net.parameters(), specs.values(), strict=True):
            weight.sign_().mul_(spec.scale)
    inputs = torch.randn(100, 6)
    other = copy.deepcopy(net)
    factor = remove_weights(other)
    assert factor == 1 / 16
    assert torch.equal(other(inputs * factor), net(inputs))
    assert torch.equal(other(inputs).argmax(1), net(inputs).argmax(1))
    rules = [FreePruning(each, lambda t: torch.optim.Adam(t, 0.01)) for each in (net, other)]
    for _ in range(30):
        train(net, rules[0])
        rules[1].zero_grad()
        nn.functional.cross_entropy(other(INPUTS * factor), LABELS).backward()
        rules[1].step()
    for one, two in zip(*(rule.scores.values() for rule in rules), strict=True):
        assert torch.equal(one, two)
    assert not all(mask.all() for mask in rules[0].masks.values())


@pytest.mark.parametrize("positive", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_signs_are_as_uneven_as_asked(positive, tmp_path):
    net = pabzip.init_(nn.Sequential(nn.Linear(200, 200, bias=False)), 3)
    before = net[0].weight.detach().clone()
    imbalance_signs(net, positive)
    share = float((net[0].weight > 0).double().mean())
    assert abs(share - positive) <= 4 * math.sqrt(positive * (1 - positive) / 200**2)
    assert torch.equal(net[0].weight.abs(), before.abs())
    one_way = net[0].weight >= before if positive > 0.5 else net[0].weight <= before
    assert one_way.all()
    assert torch.equal(net[0].weight, before) == (positive == 0.5)
    FreePruning(net)
    report = pabzip.pack(net, tmp_path / "net.pabz")
    flips = abs(positive - 0.5)
    entropy = 0.0 if not flips else -flips * math.log2(flips) - (1 - flips) * math.log2(1 - flips)
    assert report.codes_bytes <= 1.01 * entropy * 200**2 / 8 + 32


def test_networks_that_magnitudes_cannot_leave_are_refused():
    biased = pabzip.init_(nn.Sequential(nn.Linear(4, 4)), 0, "kaiming_signed_constant")
    with pytest.raises(RecipeError, match="weights that the seed drew, found 0.bias besides"):
        remove_weights(biased)
    with pytest.raises(RecipeError, match=r"0.weight: expected a signed constant, found normal"):
        remove_weights(network())
    with pytest.raises(RecipeError, match="FreeFlipping: start: expected a number from"):
        FreeFlipping(network(), start=0.0)
    with pytest.raises(RecipeError, match="positive: expected a number from 0 to 1, found 1.5"):
        imbalance_signs(network(), 1.5)
