"""Drawing a network from a seed, and the record that it leaves."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import pabzip
from pabzip.errors import SeedError
from pabzip.init import selected
from pabzip.seeds import SCHEMES, weights


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.body = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8), nn.Flatten())
        self.head = nn.Linear(8, 3)


def drawn(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in net.named_parameters()}


def test_weights_are_the_seeds_and_everything_else_stays() -> None:
    net = Net()
    before = drawn(net)
    assert pabzip.init_(net, seed=5) is net
    record = pabzip.seeding(net)
    assert record.seed == 5
    assert list(record.specs) == ["stem.weight", "body.0.weight", "head.weight"]
    assert [spec.stream for spec in record.specs.values()] == [0, 1, 2]
    for name, value in net.named_parameters():
        if name in record.specs:
            expected = weights(5, record.specs[name], 0, value.numel(), backend="numpy")
            assert np.array_equal(value.detach().numpy().reshape(-1), expected)
        else:
            assert torch.equal(value, before[name])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_draws_the_same_twice(scheme: str) -> None:
    nets = [pabzip.init_(Net(), seed=9, scheme=scheme) for _ in range(2)]
    first, second = (drawn(net) for net in nets)
    assert all(torch.equal(first[name], second[name]) for name in pabzip.seeding(nets[0]).specs)


def test_only_and_skip_take_names_modules_and_predicates() -> None:
    def seeded(**selection: object) -> list[str]:
        return list(pabzip.seeding(pabzip.init_(Net(), 0, **selection)).specs)  # type: ignore[arg-type]

    assert seeded(only=["head"]) == ["head.weight"]
    assert seeded(only="body") == ["body.0.weight"]
    assert seeded(skip=["stem.weight"]) == ["body.0.weight", "head.weight"]
    assert seeded(skip=lambda module, _name: isinstance(module, nn.Linear)) == [
        "stem.weight",
        "body.0.weight",
    ]
    # As in torchao, the name is the module's own.
    assert seeded(only=lambda _module, name: name in ("stem", "head")) == [
        "stem.weight",
        "head.weight",
    ]


def test_seeded_weights_are_selected_in_the_same_way() -> None:
    net = pabzip.init_(Net(), seed=1, skip=["stem"])
    assert list(selected(net)) == ["body.0.weight", "head.weight"]
    assert selected(net, only=["head"])["head.weight"] is net.head.weight
    assert list(selected(net, skip="body")) == ["head.weight"]
    assert list(selected(net, only=lambda module, _name: isinstance(module, nn.Conv2d))) == [
        "body.0.weight"
    ]
    assert list(selected(net, only=["body", "head"], skip=lambda _, name: name == "head")) == [
        "body.0.weight"
    ]
    assert selected(net, only=["head"], skip=["head"]) == {}
    wrapped = nn.DataParallel(net)
    assert list(selected(wrapped, only=["head"])) == ["head.weight"]


def test_selecting_refuses_names_that_are_not_seeded() -> None:
    net = pabzip.init_(Net(), seed=1, skip=["stem"])
    with pytest.raises(SeedError, match=r"only= names 'stem', expected a seeded weight .* head"):
        selected(net, only=["stem"])
    with pytest.raises(SeedError, match="skip= names 'tail', expected a seeded weight"):
        selected(net, skip=["tail"])
    with pytest.raises(SeedError, match="call pabzip.init_"):
        selected(Net())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed: expected"),
        ({"seed": 2**64}, "seed: expected"),
        ({"seed": 0, "scheme": "orthogonal"}, "kaiming_normal.*orthogonal"),
        ({"seed": 0, "skip": ["tail"]}, "skip= names 'tail', expected a weight to draw"),
        ({"seed": 0, "only": ["body.1"]}, "only= names 'body.1'"),
        ({"seed": 0, "skip": ["stem", "body", "head"]}, "at least one weight to seed"),
    ],
)
def test_bad_arguments_are_refused_and_change_nothing(
    arguments: dict[str, object], message: str
) -> None:
    net = Net()
    before = drawn(net)
    with pytest.raises(SeedError, match=message):
        pabzip.init_(net, **arguments)  # type: ignore[arg-type]
    assert all(torch.equal(value, before[name]) for name, value in net.named_parameters())
    with pytest.raises(SeedError, match="call pabzip.init_"):
        pabzip.seeding(net)


def test_the_record_survives_copies_and_stays_out_of_the_state() -> None:
    net = pabzip.init_(Net(), seed=1)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert pabzip.seeding(twin) == pabzip.seeding(net)
    assert list(net.state_dict()) == list(Net().state_dict())


def test_a_wrapper_answers_for_its_network() -> None:
    net = pabzip.init_(Net(), seed=1)
    wrapped = nn.DataParallel(net)
    assert pabzip.seeding(wrapped) is pabzip.seeding(net)
    assert pabzip.seeded_parameters(wrapped)["head.weight"] is net.head.weight


def test_a_tied_weight_is_drawn_once() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    assert list(pabzip.seeding(pabzip.init_(net, seed=1)).specs) == ["0.weight"]


def test_a_foreign_record_is_refused() -> None:
    record = pabzip.seeding(pabzip.init_(Net(), seed=1))
    with pytest.raises(SeedError, match=r"unknown names stem\.weight"):
        pabzip.attach_seeding(nn.Linear(2, 2), record)


def test_the_callers_state_is_left_alone() -> None:
    net = Net()  # torch's own initialization draws
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    pabzip.init_(net, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
