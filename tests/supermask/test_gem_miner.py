"""Gem-Miner step by step, against a plain statement of its algorithm."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import pabzip
from pabzip.errors import RecipeError
from pabzip.supermask import GemMiner


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10, bias=False), nn.ReLU(), nn.Linear(10, 3, bias=False))
    return pabzip.init_(net, seed=7)


def sgd(rate: float, momentum: float = 0.0):
    return lambda scores: torch.optim.SGD(scores, rate, momentum)


def lowest_removed(scores: list[np.ndarray], began: list[np.ndarray], alive, rate: float):
    """Return what is left after ``ceil(rate * n)`` of the n that are alive, the lowest, are gone.

    Of equal scores those go first that began lower.
    """
    flat, first, left = (np.concatenate([x.ravel() for x in xs]) for xs in (scores, began, alive))
    places = np.flatnonzero(left)
    order = places[np.lexsort((-first[places], -flat[places]))]
    left[order[len(order) - math.ceil(rate * len(order)) :]] = False
    ends = np.cumsum([score.size for score in scores])[:-1]
    parts = np.split(left, ends)
    return [part.reshape(score.shape) for part, score in zip(parts, scores, strict=True)]


@pytest.mark.parametrize("counts", ["published", "paper"])
@pytest.mark.parametrize(("penalty", "norm"), [(0.0, 2), (0.02, 2), (0.02, 1)])
def test_steps_are_those_of_the_algorithm(counts, penalty, norm):
    epochs, period, keep = 6, 2, 0.2
    net = network()
    weights = list(net.parameters())
    drawn = [weight.detach().numpy().copy() for weight in weights]
    rule = GemMiner(
        net, sgd(0.7), keep, epochs=epochs, period=period, counts=counts, penalty=penalty, norm=norm
    )
    scores = [score.numpy().astype(np.float64) for score in rule.scores.values()]
    assert all(((score >= 0) & (score <= 1)).all() for score in scores)
    began = [score.copy() for score in scores]
    alive = [np.ones(score.shape, dtype=bool) for score in scores]
    inputs, labels = torch.randn(16, 6), torch.arange(16) % 3
    clipped = 0
    for j in range(1, epochs + 1):
        for _ in range(3):
            for weight, first, score, left in zip(weights, drawn, scores, alive, strict=True):
                expected = np.where(left & (score >= 0.5), first, 0.0)
                np.testing.assert_array_equal(weight.detach().numpy(), expected)
            rule.zero_grad()
            nn.functional.cross_entropy(net(inputs), labels).backward()
            for i, (weight, first, left) in enumerate(zip(weights, drawn, alive, strict=True)):
                slope = weight.grad.numpy() * first
                slope = slope + penalty * (2 * scores[i] if norm == 2 else np.sign(scores[i]))
                moved = scores[i] - 0.7 * slope
                clipped += int(((moved < 0) | (moved > 1)).sum())
                scores[i] = np.where(left, np.clip(moved, 0, 1), 0.0)
            rule.step()
            for found, expected in zip(rule.scores.values(), scores, strict=True):
                np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-6)
        rule.end_epoch()
        # The published code counts epochs from 0 and leaves out the first.
        index = j - 1
        if counts == "published" and index % period == 0 and index != 0:
            times = (epochs - 1) // period
            alive = lowest_removed(scores, began, alive, 1 - np.exp(np.log(keep) / times))
        if counts == "paper" and j % period == 0:
            c = np.log(1 / keep) / epochs
            alive = lowest_removed(scores, began, alive, 1 - np.exp(-c * period))
        scores = [np.where(left, score, 0.0) for score, left in zip(scores, alive, strict=True)]
        for found, left in zip(rule.pruned.values(), alive, strict=True):
            np.testing.assert_array_equal(~found.numpy(), left)
    assert clipped > 0
    assert sum(int(left.sum()) for left in alive) <= math.ceil(keep * 90)


def test_the_last_epoch_ends_at_the_keep_ratio():
    for epochs in (7, 21):
        rule = GemMiner(network(), sgd(0.1), 0.1, epochs=epochs, period=5)
        for _ in range(epochs):
            rule.end_epoch()
        left = sum(int((~frozen).sum()) for frozen in rule.pruned.values())
        assert 0.1 * 90 - len(range(6, epochs + 1, 5)) <= left <= 0.1 * 90
        kept = sum(int(mask.sum()) for mask in rule.masks.values())
        assert kept <= left


def test_of_equal_scores_those_freeze_that_began_lower():
    rule = GemMiner(network(), sgd(0.1), 0.5, epochs=1, period=1)
    began = [score.clone() for score in rule.scores.values()]
    for score in rule.scores.values():
        score.fill_(1.0)
    rule.end_epoch()
    lowest = torch.cat([score.flatten() for score in began]).sort().values[:45]
    for score, frozen in zip(began, rule.pruned.values(), strict=True):
        assert torch.equal(frozen, score <= lowest[-1])


def test_what_is_not_frozen_can_be_restored_at_the_end():
    net = network()
    rule = GemMiner(net, sgd(0.5), 0.4, epochs=3, period=1, restore=True, penalty=0.2)
    inputs, labels = torch.randn(16, 6), torch.arange(16) % 3
    for epoch in range(3):
        for _ in range(3):
            rule.zero_grad()
            nn.functional.cross_entropy(net(inputs), labels).backward()
            rule.step()
        assert any((rule.masks[name] == rule.pruned[name]).any() for name in rule.masks), epoch
        rule.end_epoch()
    for name, mask in rule.masks.items():
        assert torch.equal(mask, ~rule.pruned[name])


def test_without_a_target_nothing_freezes():
    rule = GemMiner(network(), sgd(0.1), 1.0, epochs=3, period=1)
    for _ in range(3):
        rule.end_epoch()
    assert not any(frozen.any() for frozen in rule.pruned.values())


def test_a_restored_rule_goes_on_to_the_bit():
    inputs, labels = torch.randn(8, 6), torch.arange(8) % 3

    def run(net, rule, epochs):
        for _ in range(epochs):
            for _ in range(2):
                rule.zero_grad()
                nn.functional.cross_entropy(net(inputs), labels).backward()
                rule.step()
            rule.end_epoch()

    net, other = network(), network()
    rule, restored = (GemMiner(n, sgd(0.5, 0.9), 0.3, epochs=6, period=1) for n in (net, other))
    run(net, rule, 3)
    assert any(frozen.any() for frozen in rule.pruned.values())
    restored.load_state_dict(copy.deepcopy(rule.state_dict()))
    run(net, rule, 3)
    run(other, restored, 3)
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    for name, frozen in rule.pruned.items():
        assert torch.equal(frozen, restored.pruned[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_ratio": 0.0}, "GemMiner: keep_ratio: expected a number above 0 and at most 1"),
        ({"counts": "both"}, "GemMiner: counts: expected one of published, paper, found 'both'"),
        ({"period": 0}, "GemMiner: expected epochs and period of 1 or more, found 3 and 0"),
    ],
)
def test_wrong_values_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        GemMiner(network(), sgd(0.1), **{"keep_ratio": 0.1, "epochs": 3, **options})
