"""Edge-popup step by step, against a plain statement of its algorithm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import pabzip
from pabzip.errors import RecipeError
from pabzip.supermask import EdgePopup, gradual_keep_ratio


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10, bias=False), nn.ReLU(), nn.Linear(10, 3, bias=False))
    return pabzip.init_(net, seed=7)


def sgd(rate: float, momentum: float = 0.0, decay: float = 0.0):
    return lambda scores: torch.optim.SGD(scores, rate, momentum, weight_decay=decay)


def kept(sizes: list[np.ndarray], ratio: float, scope: str) -> list[np.ndarray]:
    """Return the masks: all but the smallest int((1 - ratio) * n), earlier ones before later."""
    if scope == "layer":
        return [kept([size], ratio, "global")[0] for size in sizes]
    flat = np.concatenate([size.ravel() for size in sizes])
    order = np.argsort(-flat, kind="stable")
    mask = np.zeros(len(flat), dtype=bool)
    mask[order[: len(flat) - int((1.0 - ratio) * len(flat))]] = True
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


def test_the_keep_ratio_falls_gradually():
    found = [gradual_keep_ratio(epoch, 21, 5, 0.1) for epoch in range(21)]
    assert found[:5] == [1.0] * 5
    np.testing.assert_allclose(found[5::5], [0.1**0.25, 0.1**0.5, 0.1**0.75, 0.1])
    net = network()
    rule = EdgePopup(net, sgd(0.1), 0.1, scope="global", epochs=21, period=5)
    counts = []
    for _ in range(20):
        rule.end_epoch()
        rule.step()
        counts.append(sum(int(mask.sum()) for mask in rule.masks.values()))
    assert counts[3] == 90
    assert counts[4] == 90 - int((1 - 0.1**0.25) * 90)
    assert counts[-1] == 90 - int(0.9 * 90)


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
