"""Smart ratios against a plain restatement of them, in whole numbers and fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import pabzip
from pabzip import models
from pabzip.errors import SearchError
from pabzip.search import smart_ratio
from pabzip.search.baselines import smart_counts
from pabzip.seeds.philox import words


def published(sizes, kinds, keep, form, linear_keep=Fraction(3, 10)):
    """The counts of Su et al. 2020: int(ratio * size) of each layer.

    Layer l of L keeps in proportion to (L - l + 1) ** 2 + (L - l + 1), in plain networks over
    l ** 2; Linear layers a fraction of their own. What exceeds a layer fills up the next ones.
    """
    count = len(sizes)
    shares = []
    for place in range(count):
        falling = count - place
        share = Fraction(falling**2 + falling)
        shares.append(share if form == "resnet" else share / (place + 1) ** 2)
    convolutions = [place for place in range(count) if kinds[place] == "conv"]
    linear_total = sum(sizes[place] for place in range(count) if kinds[place] == "linear")
    goal = int(keep * sum(sizes)) - int(linear_total * linear_keep)
    scale = goal / Fraction(sum(int(sizes[place] * shares[place]) for place in convolutions))
    ratios = [scale * share for share in shares]
    extra = 0
    for place in convolutions:
        if ratios[place] >= 1:
            extra += int((ratios[place] - 1) * sizes[place])
            ratios[place] = Fraction(1)
        else:
            room = int((1 - ratios[place]) * sizes[place])
            if room >= extra:
                ratios[place] += Fraction(extra, sizes[place])
                extra = 0
            else:
                extra -= room
                ratios[place] = Fraction(1)
        if extra == 0:
            break
    return [
        int(sizes[place] * (ratios[place] if kinds[place] == "conv" else linear_keep))
        for place in range(count)
    ]


def network(name):
    return pabzip.init_(models.build(name, num_classes=10), 5)


@pytest.mark.parametrize("form", ["resnet", "vgg"])
@pytest.mark.parametrize("keep", ["0.0144", "0.1", "0.3", "0.5"])
@pytest.mark.parametrize("name", ["resnet20", "conv6", "mobilenetv2"])
def test_the_counts_are_the_published_ones(name, keep, form):
    net = network(name)
    weights = pabzip.seeded_parameters(net)
    kinds = ["linear" if weight.dim() == 2 else "conv" for weight in weights.values()]
    sizes = [weight.numel() for weight in weights.values()]
    expected = published(sizes, kinds, Fraction(keep), form)
    if min(expected) >= 1:
        masks = smart_ratio(net, float(keep), ratio_form=form)
        assert [int(mask.sum()) for mask in masks.values()] == expected
    else:
        with pytest.raises(SearchError, match=r"smart-ratio: "):
            smart_ratio(net, float(keep), ratio_form=form)


def test_layers_fill_up_one_after_the_other():
    sizes = {"a": 100, "b": 1000, "c": 10_000, "d": 20_000, "fc": 500}
    counts = smart_counts(sizes, ["fc"], 0.8)
    assert (counts["a"], counts["b"], counts["c"], counts["fc"]) == (100, 1000, 10_000, 150)
    assert int(0.8 * 31_600) - 2 <= sum(counts.values()) <= int(0.8 * 31_600)
    kinds = ["conv"] * 4 + ["linear"]
    expected = published(list(sizes.values()), kinds, Fraction("0.8"), "resnet")
    assert [counts[name] for name in sizes] == expected
    over = smart_counts({"a": 100, "fc": 900}, ["fc"], 0.5)
    assert over == {"fc": 270, "a": 100}  # the other 130 have no layer to go to


def test_a_layer_that_keeps_nothing():
    net = pabzip.init_(nn.Sequential(nn.Conv2d(1, 64, 3), nn.Conv2d(64, 1, 1)), 0)
    with pytest.raises(SearchError, match=r"keep_ratio=0.01 leaves none of '1.weight'; raise"):
        smart_ratio(net, 0.01)


def test_weights_are_kept_at_random_by_the_seed():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten(),
        nn.Linear(128, 4),
    )  # fmt: skip
    pabzip.init_(net, 3)
    masks = smart_ratio(net, 0.35, seed=17, linear_keep_ratio=0.25)
    assert int(masks["4.weight"].sum()) == 128
    for number, mask in enumerate(masks.values()):
        scores = words(17, 2**29 + number, 0, mask.numel()) & np.uint32(2**31 - 1)
        kept = np.argsort(-scores.astype(np.float64), kind="stable")[: int(mask.sum())]
        assert set(kept) == set(torch.nonzero(mask.flatten()).flatten().tolist())


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"ratio_form": "cubic"}, r"ratio_form: expected one of resnet, vgg, found 'cubic'"),
        ({"linear_keep_ratio": 0.0}, r"linear_keep_ratio: expected a fraction .* found 0.0"),
        (
            {"linear_keep_ratio": 1.0},
            r"smart-ratio: .* beside the 512 weights of Linear layers",
        ),
        ({"only": ["2"]}, r"smart-ratio: expected convolutions .* found 0 convolutions"),
    ],
)
def test_what_has_no_smart_ratio(settings, problem):
    net = pabzip.init_(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(128, 4)), 0)
    before = net[0].weight.detach().clone()
    with pytest.raises(SearchError, match=problem):
        smart_ratio(net, 0.3, **settings)
    assert torch.equal(net[0].weight, before)
