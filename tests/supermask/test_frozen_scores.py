"""Score rules on masks that the seed freezes in part: frozen places are fixed, scores stay 0."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from torch import nn

import pabzip
from pabzip.errors import SeedError
from pabzip.seeds import Frozen
from pabzip.seeds.frozen import KEPT, PRUNED
from pabzip.supermask import EdgePopup

FROZEN = Frozen.of(0.45, 0.25)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 20, bias=False), nn.ReLU(), nn.Linear(20, 3, bias=False))
    return pabzip.init_(net, seed=7)


def marks_of(net: nn.Module) -> list[np.ndarray]:
    record = pabzip.seeding(net)
    found = []
    for name, weight in pabzip.seeded_parameters(net).items():
        drawn = FROZEN.marks(record.seed, record.specs[name].stream, 0, weight.numel())
        found.append(drawn.reshape(weight.shape))
    return found


OPTIMIZERS = {
    "sgd": lambda scores: torch.optim.SGD(scores, 0.5, 0.9, weight_decay=1e-2),
    "adam": lambda scores: torch.optim.Adam(scores, 0.1, weight_decay=1e-2),
}


def steps(net: nn.Module, rule: EdgePopup, count: int) -> None:
    inputs, labels = torch.randn(16, 12), torch.arange(16) % 3
    for _ in range(count):
        rule.zero_grad()
        nn.functional.cross_entropy(net(inputs), labels).backward()
        rule.step()


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("keep", [0.3, 0.5])
def test_frozen_places_stay_and_the_whole_mask_has_the_keep_ratio(scope, optimizer, keep):
    net = network()
    drawn = [weight.detach().numpy().copy() for weight in net.parameters()]
    marks = marks_of(net)
    rule = EdgePopup(net, OPTIMIZERS[optimizer], keep, scope=scope, penalty=0.1, frozen=FROZEN)
    first = [score.clone() for score in rule.scores.values()]
    for _ in range(3):
        counts = []
        for weight, values, mark, score in zip(
            net.parameters(), drawn, marks, rule.scores.values(), strict=True
        ):
            found = weight.detach().numpy()
            np.testing.assert_array_equal(found[mark == KEPT], values[mark == KEPT])
            assert not found[mark == PRUNED].any()
            assert not np.signbit(found[mark == PRUNED]).any()
            assert not score.numpy()[mark != 0].any()
            free = np.abs(score.numpy()[mark == 0])
            kept = found[mark == 0] != 0
            counts.append((int((found != 0).sum()), found.size, free[kept], free[~kept]))
        if scope == "layer":
            for count, size, kept, pruned in counts:
                assert count == size - int((1.0 - keep) * size)
                assert kept.min() >= pruned.max()
        total = sum(size for _, size, _, _ in counts)
        if scope == "global":
            assert sum(count for count, *_ in counts) == total - int((1.0 - keep) * total)
            kept = np.concatenate([kept for *_, kept, _ in counts])
            assert kept.min() >= np.concatenate([pruned for *_, pruned in counts]).max()
        steps(net, rule, 2)
    for before, score in zip(first, rule.scores.values(), strict=True):
        assert (before != score).any()


def test_learned_scores_move_as_in_the_plain_statement():
    net = network()
    drawn = [weight.detach().numpy().copy() for weight in net.parameters()]
    marks = marks_of(net)
    rule = EdgePopup(net, lambda scores: torch.optim.SGD(scores, 0.5), 0.4, frozen=FROZEN)
    scores = [score.numpy().copy() for score in rule.scores.values()]
    inputs, labels = torch.randn(16, 12), torch.arange(16) % 3
    for _ in range(4):
        rule.zero_grad()
        nn.functional.cross_entropy(net(inputs), labels).backward()
        for at, weight in enumerate(net.parameters()):
            slope = weight.grad.numpy() * drawn[at] * np.sign(scores[at])
            scores[at] = np.where(marks[at] == 0, scores[at] - 0.5 * slope, 0.0)
        rule.step()
        for found, expected in zip(rule.scores.values(), scores, strict=True):
            np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-7)


def test_more_kept_by_the_seed_than_asked_for_leaves_nothing_to_learn():
    net = network()
    marks = marks_of(net)
    EdgePopup(net, OPTIMIZERS["sgd"], 0.05, frozen=FROZEN)
    for weight, mark in zip(net.parameters(), marks, strict=True):
        np.testing.assert_array_equal(weight.detach().numpy() != 0, mark == KEPT)


@pytest.mark.parametrize("frozen", [Frozen.of(0.7, 0.3), Frozen.of(1.0, 0.0)])
def test_all_may_be_frozen(frozen):
    net = network()
    rule = EdgePopup(net, OPTIMIZERS["sgd"], 0.3, frozen=frozen)
    before = [weight.detach().clone() for weight in net.parameters()]
    steps(net, rule, 2)
    left = sum(int((~mask).sum()) for mask in rule.frozen.values())
    moved = sum(int((one != two).sum()) for one, two in zip(before, net.parameters(), strict=True))
    assert moved <= left <= 2


def test_the_record_says_what_is_frozen_and_a_loaded_network_goes_on_so():
    net = network()
    names = list(pabzip.seeded_parameters(net))
    rule = EdgePopup(net, OPTIMIZERS["sgd"], 0.4, frozen=FROZEN)
    steps(net, rule, 3)
    assert pabzip.seeding(net).frozen == dict.fromkeys(names, FROZEN)
    file = io.BytesIO()
    pabzip.pack(net, file)
    other = network()
    pabzip.load_into(other, file.getvalue())
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    again = EdgePopup(other, OPTIMIZERS["sgd"], 0.4)
    for name in names:
        assert torch.equal(again.frozen[name], rule.frozen[name])
    steps(other, again, 3)
    packed = io.BytesIO()
    pabzip.pack(other, packed)  # frozen places are still as the seed says
    with pabzip.open(packed.getvalue()) as ticket:
        assert all(ticket.frozen(name) == FROZEN for name in names)


def test_a_free_rule_frees_the_record():
    net = network()
    EdgePopup(net, OPTIMIZERS["sgd"], 0.4, frozen=FROZEN)
    rule = EdgePopup(net, OPTIMIZERS["sgd"], 0.4, frozen=Frozen(0, 0))
    assert not rule.frozen
    assert not pabzip.seeding(net).frozen


def test_a_free_rule_is_what_it_was():
    one, other = network(), network()
    torch.manual_seed(1)
    steps(one, EdgePopup(one, OPTIMIZERS["adam"], 0.4), 3)
    torch.manual_seed(1)
    steps(other, EdgePopup(other, OPTIMIZERS["adam"], 0.4, frozen=Frozen(0, 0)), 3)
    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(first, second)


def test_a_wrapped_network_is_frozen_inside():
    net = network()
    wrapped = nn.DataParallel(net)
    rule = EdgePopup(wrapped, OPTIMIZERS["sgd"], 0.4, frozen=FROZEN)
    assert list(rule.frozen) == ["0.weight", "2.weight"]
    assert list(pabzip.seeding(net).frozen) == ["0.weight", "2.weight"]


def test_weights_may_be_frozen_by_name():
    net = network()
    rule = EdgePopup(net, OPTIMIZERS["sgd"], 0.4, frozen={"2.weight": FROZEN})
    assert list(rule.frozen) == ["2.weight"]
    assert pabzip.seeding(net).frozen == {"2.weight": FROZEN}
    with pytest.raises(SeedError, match="found unknown names 1.weight"):
        EdgePopup(net, OPTIMIZERS["sgd"], 0.4, frozen={"1.weight": FROZEN})


def test_a_state_of_a_free_rule_leaves_frozen_places_alone():
    state = EdgePopup(network(), OPTIMIZERS["sgd"], 0.4).state_dict()
    net = network()
    rule = EdgePopup(net, OPTIMIZERS["sgd"], 0.4, frozen=FROZEN)
    rule.load_state_dict(state)
    for name, score in rule.scores.items():
        assert not score[rule.frozen[name]].any()
    pabzip.pack(net, io.BytesIO())
