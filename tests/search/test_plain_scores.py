"""Magnitude and random masks, to the bit."""

import numpy as np
import pytest
import torch
from torch import nn

import pabzip.init
from pabzip.errors import SearchError, SeedError
from pabzip.search import layerwise_random, magnitude, random
from pabzip.seeds.philox import words

SHAPES = {"0.weight": (6, 3, 3, 3), "2.weight": (4, 6, 3, 3), "5.weight": (5, 16)}


def net_of(seed=3):
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip
    return pabzip.init.init_(net, seed)


def survivors(keep, count):
    return count - int((1 - keep) * count)


def flat(masks):
    return np.concatenate([mask.numpy().ravel() for mask in masks.values()])


def best(scores, count):
    result = np.zeros(len(scores), bool)
    result[np.argsort(-scores.astype(np.float64), kind="stable")[:count]] = True
    return result


def philox_scores(seed):
    """The scores of every weight, from the plain numpy generator."""
    return [
        words(seed, 2**29 + number, 0, int(np.prod(shape))) & np.uint32(2**31 - 1)
        for number, shape in enumerate(SHAPES.values())
    ]


@pytest.mark.parametrize("keep", [0.2, 0.4, 1.0])
def test_magnitude_keeps_the_largest(keep):
    net = net_of()
    weights = np.concatenate(
        [w.detach().abs().numpy().ravel() for w in pabzip.init.seeded_parameters(net).values()]
    )
    assert np.array_equal(
        flat(magnitude(net, keep, input_shape=(3, 6, 6))),
        best(weights, survivors(keep, len(weights))),
    )


@pytest.mark.parametrize("seed", [None, 17, 2**64 - 1])
@pytest.mark.parametrize("keep", [0.05, 0.4, 1.0])
def test_random_keeps_the_largest_words(seed, keep):
    scores = np.concatenate(philox_scores(3 if seed is None else seed))
    found = random(net_of(), keep, input_shape=(3, 6, 6), seed=seed)
    assert list(found) == list(SHAPES)
    assert np.array_equal(flat(found), best(scores, survivors(keep, len(scores))))


def test_random_masks_ignore_and_spare_torchs_generator():
    torch.manual_seed(1)
    one = random(net_of(), 0.3, input_shape=(3, 6, 6))
    torch.manual_seed(2)
    other = random(net_of(), 0.3, input_shape=(3, 6, 6))
    assert np.array_equal(flat(one), flat(other))
    net = net_of()
    before = torch.get_rng_state()
    random(net, 0.3, input_shape=(3, 6, 6), seed=5)
    assert torch.equal(before, torch.get_rng_state())


def test_random_masks_nest_and_differ_by_seed():
    net = net_of()
    wide = random(net, 0.5, input_shape=(3, 6, 6))
    narrow = random(net, 0.2, input_shape=(3, 6, 6))
    assert not (flat(narrow) & ~flat(wide)).any()
    assert np.array_equal(flat(narrow), flat(random(net_of(), 0.2, input_shape=(3, 6, 6))))
    assert not np.array_equal(
        flat(narrow), flat(random(net_of(), 0.2, input_shape=(3, 6, 6), seed=4))
    )


@pytest.mark.parametrize("method", [magnitude, random])
def test_a_threshold_of_its_own_for_every_layer(method):
    masks = method(net_of(), 0.3, input_shape=(3, 6, 6), scope="layer")
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {
        name: survivors(0.3, int(np.prod(shape))) for name, shape in SHAPES.items()
    }
    with pytest.raises(SearchError, match=r"scope: expected one of global, layer, found 'row'"):
        method(net_of(), 0.3, input_shape=(3, 6, 6), scope="row")


def test_layerwise_random_keeps_exactly_what_each_layer_is_given():
    ratios = {"5.weight": 0.9, "0.weight": 0.123, "2.weight": 1.0}
    masks = layerwise_random(net_of(), 0.5, ratios=ratios)
    assert list(masks) == list(SHAPES)
    for mask, scores, name in zip(masks.values(), philox_scores(3), SHAPES, strict=True):
        assert np.array_equal(
            mask.numpy().ravel(), best(scores, survivors(ratios[name], len(scores)))
        )


@pytest.mark.parametrize(
    ("ratios", "problem"),
    [
        (
            {"9.weight": 0.5},
            r"ratios: expected names among 0.weight, 2.weight, .* found '9.weight'",
        ),
        ({"2.weight": 0.0}, r"keep_ratio of '2.weight': expected a"),
        ({"5.weight": 1e-17}, r"keep_ratio of '5.weight': 1e-17 of 8"),
    ],
)
def test_ratios_that_do_not_fit(ratios, problem):
    net = net_of()
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(SearchError, match=problem):
        layerwise_random(net, 0.5, ratios=ratios)
    assert all(torch.equal(one, two) for one, two in zip(before, net.parameters(), strict=True))


def test_a_layer_with_too_few_left_is_named():
    net = net_of()
    layerwise_random(net, 0.5, ratios={"2.weight": 0.1})
    with pytest.raises(
        SearchError, match=r"keep_ratio of '2.weight': 0.5 asks for 108 survivors, found only 22"
    ):
        layerwise_random(net, 0.5)


@pytest.mark.parametrize("method", [magnitude, random])
def test_collapse_names_the_layer_and_restores(method):
    net = net_of()
    with torch.no_grad():
        net[2].weight.mul_(1e-3)
    if method is random:
        with torch.no_grad():
            net[2].weight.zero_()
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(SearchError, match=r"layer collapse: nothing is left of '2.weight', and no"):
        method(net, 0.1, input_shape=(3, 6, 6))
    assert all(torch.equal(one, two) for one, two in zip(before, net.parameters(), strict=True))


def test_seeds_that_are_none():
    with pytest.raises(SeedError, match="seed"):
        random(net_of(), 0.5, input_shape=(3, 6, 6), seed=-1)
    plain = nn.Sequential(nn.Linear(4, 2))
    weights = {"0.weight": plain[0].weight}
    with pytest.raises(SeedError, match=r"call pabzip.init_"):
        random(plain, 0.5, input_shape=(4,), weights=weights)
    assert int(random(plain, 0.5, input_shape=(4,), weights=weights, seed=1)["0.weight"].sum()) == 4
