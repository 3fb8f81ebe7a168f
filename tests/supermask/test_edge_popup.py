"""Edge-popup step by step, against a plain statement of its algorithm."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import pabzip
from pabzip.errors import RecipeError
from pabzip.supermask import EdgePopup, fall_epochs, gradual_keep_ratio


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10, bias=False), nn.ReLU(), nn.Linear(10, 3, bias=False))
    return pabzip.init_(net, seed=7)


def sgd(rate: float, momentum: float = 0.0, decay: float = 0.0):
    return lambda scores: torch.optim.SGD(scores, rate, momentum, weight_decay=decay)


def kept(sizes: list[np.ndarray], ratio: float, scope: str) -> list[np.ndarray]:
    """Return the masks: all but the smallest (1 - ratio) * n, earlier ones before later.

    The published codes round this number down for a layer, and up for the network.
    """
    if scope == "layer":
        return [kept([size], ratio, "one layer")[0] for size in sizes]
    flat = np.concatenate([size.ravel() for size in sizes])
    order = np.argsort(-flat, kind="stable")
    mask = np.zeros(len(flat), dtype=bool)
    pruned = (1.0 - ratio) * len(flat)
    mask[order[: len(flat) - (int(pruned) if scope == "one layer" else math.ceil(pruned))]] = True
    ends = np.cumsum([size.size for size in sizes])[:-1]
    return [part.reshape(s.shape) for part, s in zip(np.split(mask, ends), sizes, strict=True)]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(("penalty", "norm"), [(0.0, 2), (0.01, 2), (0.01, 1)])
def test_steps_are_those_of_the_algorithm(scope, penalty, norm):
    net = network()
    drawn = [weight.detach().numpy().copy() for weight in net.parameters()]
    rule = EdgePopup(net, sgd(0.5, 0.9, 1e-3), 0.3, scope=scope, penalty=penalty, norm=norm)
    scores = [score.numpy().astype(np.float64) for score in rule.scores.values()]
    buffers = None
    inputs, labels = torch.randn(16, 6), torch.arange(16) % 3
    for step in range(5):
        masks = kept([np.abs(score) for score in scores], 0.3, scope)
        for weight, first, mask in zip(net.parameters(), drawn, masks, strict=True):
            np.testing.assert_array_equal(weight.detach().numpy(), np.where(mask, first, 0.0))
            assert not np.signbit(weight.detach().numpy()[~mask]).any()
        rule.zero_grad()
        nn.functional.cross_entropy(net(inputs), labels).backward()
        moves = []
        for weight, first, score in zip(net.parameters(), drawn, scores, strict=True):
            slope = weight.grad.numpy() * first * np.sign(score) + 1e-3 * score
            slope += penalty * (2 * score if norm == 2 else np.sign(score))
            moves.append(slope)
        buffers = (
            moves
            if buffers is None
            else [0.9 * old + new for old, new in zip(buffers, moves, strict=True)]
        )
        scores = [score - 0.5 * move for score, move in zip(scores, buffers, strict=True)]
        rule.step()
        for found, expected in zip(rule.scores.values(), scores, strict=True):
            np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-6), step


def test_the_keep_ratio_falls_where_the_published_code_lets_it():
    found = [gradual_keep_ratio(epoch, 21, 5, 0.1) for epoch in range(22)]
    # The published code prunes after the epochs of index 5, 10, 15 and 20, counted from 0.
    assert found[:6] == [1.0] * 6
    np.testing.assert_allclose(found[6::5], [0.1**0.25, 0.1**0.5, 0.1**0.75, 0.1])
    assert list(fall_epochs(150, 5)) == [index + 1 for index in range(1, 150) if index % 5 == 0]
    assert len(fall_epochs(150, 5)) == (150 - 1) // 5
    assert list(fall_epochs(150, 5, "paper")) == [j for j in range(1, 151) if j % 5 == 0]
    assert list(fall_epochs(4, 5)) == [4]
    net = network()
    rule = EdgePopup(net, sgd(0.1), 0.1, scope="global", epochs=21, period=5)
    counts = []
    for _ in range(21):
        rule.end_epoch()
        counts.append(sum(int(mask.sum()) for mask in rule.masks.values()))
    assert counts[4] == 90
    assert counts[5] == 90 - math.ceil((1 - 0.1**0.25) * 90)
    assert counts[-1] == 90 - math.ceil(0.9 * 90)


@pytest.mark.parametrize("ratio", [0.0059, 0.05, 0.37])
def test_the_global_count_is_the_published_threshold_s(ratio):
    """The threshold is the score of rank ``ceil((1 - ratio) * n)``, and what exceeds it is kept."""
    torch.manual_seed(1)
    net = pabzip.init_(nn.Sequential(nn.Linear(40, 30, bias=False), nn.Linear(30, 7)), seed=3)
    rule = EdgePopup(net, sgd(0.1), ratio, scope="global")
    sizes = np.concatenate([score.numpy().ravel() for score in rule.scores.values()])
    sizes = np.abs(sizes)
    threshold = np.sort(sizes)[math.ceil((1 - ratio) * len(sizes)) - 1]
    kept_weights = np.concatenate([mask.numpy().ravel() for mask in rule.masks.values()])
    np.testing.assert_array_equal(kept_weights, sizes > threshold)


def test_a_ticket_of_a_score_method_packs_and_loads(tmp_path):
    net = network()
    EdgePopup(net, sgd(0.1), 0.3)
    pabzip.pack(net, tmp_path / "net.pabz")
    again = network()
    pabzip.load_into(again, tmp_path / "net.pabz")
    for one, other in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_flips_count_the_weights_that_come_and_go():
    net = network()
    rule = EdgePopup(net, sgd(50.0), 0.5)
    before = rule.masks
    nn.functional.cross_entropy(net(torch.randn(8, 6)), torch.arange(8) % 3).backward()
    rule.step()
    moved = sum(int((before[name] != mask).sum()) for name, mask in rule.masks.items())
    assert moved > 0
    assert int(rule.flips) == moved


def test_a_restored_rule_goes_on_to_the_bit():
    inputs, labels = torch.randn(8, 6), torch.arange(8) % 3

    def steps(net, rule, count):
        for _ in range(count):
            rule.zero_grad()
            nn.functional.cross_entropy(net(inputs), labels).backward()
            rule.step()

    net, other = network(), network()
    rule, restored = (EdgePopup(each, sgd(0.5, 0.9), 0.3) for each in (net, other))
    steps(net, rule, 3)
    state = {**rule.state_dict(), "scores": [score.clone() for score in rule.scores.values()]}
    restored.load_state_dict(state)
    steps(net, rule, 3)
    steps(other, restored, 3)
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_ratio": 0.0}, "EdgePopup: keep_ratio: expected a number above 0 and at most 1"),
        ({"keep_ratio": 0.1, "scope": "all"}, "EdgePopup: scope: expected one of layer, global"),
        ({"keep_ratio": 0.1, "penalty": -1.0}, "EdgePopup: penalty: expected zero or more"),
        ({"keep_ratio": 0.1, "norm": 3}, "EdgePopup: norm: expected 1 or 2, found 3"),
    ],
)
def test_wrong_values_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        EdgePopup(network(), sgd(0.1), **options)
