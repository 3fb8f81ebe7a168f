"""Biprop step by step, against a plain statement of Algorithm 1 of Multi-Prize Tickets."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import pabzip
from pabzip.errors import RecipeError
from pabzip.init import seeding
from pabzip.seeds import weights
from pabzip.supermask import Biprop

INPUTS = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(16) % 3


def network() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(6, 10, bias=False), nn.ReLU(), nn.Linear(10, 3, bias=False))
    return pabzip.init_(net, seed=7)


def sgd(rate: float, momentum: float = 0.0, decay: float = 0.0):
    return lambda scores: torch.optim.SGD(scores, rate, momentum, weight_decay=decay)


def train(net: nn.Module, rule: Biprop, steps: int) -> None:
    for _ in range(steps):
        rule.zero_grad()
        nn.functional.cross_entropy(net(INPUTS), LABELS).backward()
        rule.step()


def check_record(net: nn.Module, rule: Biprop) -> None:
    """The record regenerates every kept weight to the bit, sign included: codes are 0 and 1."""
    record = seeding(net)
    for name, weight in net.named_parameters():
        spec = record.specs[name]
        assert spec.distribution == "signed_constant"
        assert spec.scale == float(rule.gains[name])
        drawn = weights(record.seed, spec, 0, weight.numel()).reshape(weight.shape)
        found = weight.detach().numpy()
        kept = found != 0
        np.testing.assert_array_equal(found[kept].view(np.uint32), drawn[kept].view(np.uint32))
        assert not np.signbit(found[~kept]).any()


@pytest.mark.parametrize("gradient", ["published", "gain", "paper"])
def test_steps_are_those_of_the_algorithm(gradient):
    net = network()
    drawn = [weight.detach().double().numpy().copy() for weight in net.parameters()]
    rule = Biprop(net, sgd(0.5, 0.9, 1e-3), 0.3, gradient=gradient)
    scores = [score.double().numpy().copy() for score in rule.scores.values()]
    before = [weight.detach() != 0 for weight in net.parameters()]
    buffers = [np.zeros_like(score) for score in scores]
    for _ in range(12):
        gains = []
        for weight, w0, score in zip(net.parameters(), drawn, scores, strict=True):
            size = np.abs(score).ravel()
            pruned = int((1 - 0.3) * size.size)
            mask = np.ones(size.size)
            mask[np.argsort(size, kind="stable")[:pruned]] = 0
            mask = mask.reshape(score.shape)
            gains.append(np.abs(mask * w0).sum() / mask.sum())
            np.testing.assert_allclose(
                weight.detach().numpy(), gains[-1] * np.sign(w0) * mask, rtol=1e-6
            )
        rule.zero_grad()
        nn.functional.cross_entropy(net(INPUTS), LABELS).backward()
        for i, weight in enumerate(net.parameters()):
            g = weight.grad.double().numpy()
            if gradient == "published":
                slope = g * np.sign(drawn[i]) * np.abs(drawn[i]) * np.sign(scores[i])
            else:
                slope = g * gains[i] * np.sign(drawn[i])
                slope *= np.sign(scores[i]) if gradient == "gain" else 1
            buffers[i] = 0.9 * buffers[i] + slope + 1e-3 * scores[i]
            scores[i] = scores[i] - 0.5 * buffers[i]
        rule.step()
        for found, expected in zip(rule.scores.values(), scores, strict=True):
            np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-5)
    after = [weight.detach() != 0 for weight in net.parameters()]
    assert any(not torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_the_record_matches_the_weights_after_any_step(tmp_path):
    net = network()
    rule = Biprop(net, sgd(2.0), 0.3)
    scales = set()
    for _ in range(5):
        check_record(net, rule)
        scales.add(seeding(net).specs["0.weight"].scale)
        train(net, rule, 1)
    assert len(scales) > 1
    pabzip.pack(net, tmp_path / "net.pabz")
    ticket = pabzip.open(tmp_path / "net.pabz")
    for name, spec in seeding(net).specs.items():
        assert ticket.spec(name) == spec
        assert set(np.unique(ticket.codes(name))) == {0, 1}
    again = network()
    pabzip.load_into(again, tmp_path / "net.pabz")
    for one, other in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_restored_rule_goes_on_to_the_bit():
    net, other = network(), network()
    rule, restored = (Biprop(each, sgd(2.0, 0.9), 0.3) for each in (net, other))
    train(net, rule, 3)
    restored.load_state_dict(copy.deepcopy(rule.state_dict()))
    check_record(other, restored)
    assert seeding(other) == seeding(net)
    train(net, rule, 3)
    train(other, restored, 3)
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_copies_and_wrappers_keep_a_record_of_their_own(tmp_path):
    wrapped = nn.DataParallel(network())
    rule = Biprop(wrapped, sgd(2.0), 0.3)
    train(wrapped, rule, 1)
    check_record(wrapped.module, rule)
    pabzip.pack(wrapped, tmp_path / "net.pabz")
    for copied in (copy.deepcopy(wrapped.module), pickle.loads(pickle.dumps(wrapped.module))):
        before = dict(seeding(copied).specs)
        train(wrapped, rule, 2)
        assert dict(seeding(copied).specs) == before != dict(seeding(wrapped.module).specs)
        pabzip.pack(copied, tmp_path / "copied.pabz")


def test_a_tensor_that_keeps_nothing_still_has_a_scale(tmp_path):
    net = network()
    rule = Biprop(net, sgd(0.1), 0.1, scope="global")
    rule.scores["0.weight"].mul_(1e-6)
    train(net, rule, 1)
    assert not rule.masks["0.weight"].any()
    pabzip.pack(net, tmp_path / "net.pabz")


def test_wrong_values_are_refused():
    with pytest.raises(RecipeError, match="one of published, gain, paper, found 'x'"):
        Biprop(network(), sgd(0.1), 0.3, gradient="x")
    with pytest.raises(RecipeError, match="Biprop: keep_ratio: expected a number above 0"):
        Biprop(network(), sgd(0.1), 0.0)
