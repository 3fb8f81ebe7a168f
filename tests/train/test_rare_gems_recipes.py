"""The recipes of Rare Gems: the numbers of its tables, and networks that can be built."""

from __future__ import annotations

import pytest
import torch

from pabzip.data import geometry
from pabzip.init import seeded_parameters
from pabzip.train import build_network, read_recipe
from pabzip.train.pruning import planned_searches
from pabzip.train.recipes import find_recipe, published_recipes

NAMES = [found.name for found in published_recipes() if found.name.startswith("rare-gems")]

# Network, sparsity in percent: pruning period, rate and lambda, of Tables 8 to 13.
GEM_MINER = {
    "resnet20": {50: (8, 0.05, 1e-8), 13.74: (5, 0.1, 1e-5), 3.73: (5, 0.1, 3e-5),
                 1.44: (5, 0.1, 1e-4), 0.59: (5, 0.1, 1e-4)},
    "mobilenetv2": {50: (5, 0.05, 0), 20: (5, 0.1, 3e-6), 5: (5, 0.1, 7e-6), 1.44: (5, 0.1, 1e-4)},
    "vgg16": {50: (5, 0.01, 0), 5: (5, 0.01, 1e-6), 2.5: (5, 0.01, 1e-6), 1.4: (5, 0.01, 1e-6),
              0.5: (5, 0.01, 1e-6)},
    "wideresnet28-2": {50: (5, 0.1, 0), 20: (10, 0.1, 1e-5), 5: (10, 0.1, 1e-5),
                       1.44: (10, 0.1, 1e-5), 0.5: (10, 0.1, 1e-5)},
    "tiny-resnet18": {50: (10, 0.1, 0), 5: (5, 0.001, 8e-6), 1.4: (5, 0.001, 5e-6),
                      0.5: (5, 0.001, 1e-5)},
    "tiny-resnet50": {50: (5, 0.01, 0), 5: (5, 0.01, 1e-6), 1.4: (5, 0.01, 1e-6),
                      0.5: (5, 0.01, 1e-6)},
}  # fmt: skip

# Network: epochs, batch size, then rate and milestones for 50 % and for less, of Table 15.
TUNING = {
    "resnet20": (150, 128, 0.1, 0.01, (80, 120)),
    "mobilenetv2": (300, 128, 0.1, 0.1, (150, 250)),
    "vgg16": (200, 128, 0.05, 0.05, (100, 150)),
    "wideresnet28-2": (150, 128, 0.1, 0.01, (80, 120)),
    "tiny-resnet18": (200, 256, 0.1, 0.1, (100, 150)),
    "tiny-resnet50": (150, 256, 0.1, 0.1, (80, 120)),
}


def recipe(name: str):
    return read_recipe(find_recipe(f"rare-gems-{name}"))


@pytest.mark.parametrize("network", GEM_MINER)
def test_gem_miner(network):
    epochs, batch_size, *_ = TUNING[network]
    rows = [name for name in NAMES if name.startswith(f"rare-gems-{network}-keep-")]
    assert len(rows) == len(GEM_MINER[network])
    for percent, (period, rate, penalty) in GEM_MINER[network].items():
        found = recipe(f"{network}-keep-{percent / 100:g}")
        own = found.gem_miner
        assert (found.method, found.keep_ratio) == ("gem-miner", pytest.approx(percent / 100))
        assert (own.period, own.lr, own.penalty, own.norm) == (period, rate, penalty, 2)
        adam = network == "tiny-resnet50" or (network == "tiny-resnet18" and percent < 50)
        assert own.optimizer == ("adam" if adam else "sgd")
        assert (found.epochs, found.batch_size) == (epochs, batch_size)
        assert (found.scheme, found.classifier) == ("kaiming_signed_constant", "seeded")
        assert found.augment


@pytest.mark.parametrize("network", TUNING)
def test_fine_tuning(network):
    epochs, batch_size, half, less, milestones = TUNING[network]
    for suffix, rate in (("-keep-0.5", half), ("", less)):
        if half == less and suffix:
            continue
        found = recipe(f"{network}-tune{suffix}")
        assert (found.method, found.epochs, found.batch_size) == ("sgd", epochs, batch_size)
        assert (found.sgd.lr, found.sgd.milestones) == (rate, milestones)
        gem = recipe(f"{network}-keep-0.5")
        for key in ("arch", "arch_options", "data", "seed", "scheme", "classifier"):
            assert getattr(found, key) == getattr(gem, key)


def test_the_variants_of_edge_popup():
    forms = {"ep": ("layer", False, 0), "global-ep": ("global", False, 0),
             "gradual-ep": ("global", True, 0), "penalty-ep": ("global", True, 1e-4)}  # fmt: skip
    for name, (scope, gradual, penalty) in forms.items():
        own = recipe(f"resnet20-{name}").edge_popup
        assert (own.scope, own.gradual, own.penalty) == (scope, gradual, penalty)
        assert (own.period, own.lr, own.momentum, own.schedule) == (5, 0.1, 0.9, "cosine")


def test_magnitude_pruning_takes_a_fifth_each_round():
    for name in NAMES:
        found = read_recipe(find_recipe(name))
        if found.method != "imp":
            continue
        left = [planned.of(found.keep_ratio) for planned in planned_searches(found)]
        assert left == pytest.approx([0.8**i for i in range(1, 20)], rel=1e-2)
        assert found.imp.round_epochs == (8 if "short" in name else 160)
        assert found.imp.rewind_epoch == (3 if "warm" in name else 0)
        assert found.imp.rewind == ("rate" if "rate" in name else "weights")


@pytest.mark.parametrize("network", GEM_MINER)
def test_the_networks_are_those_of_the_paper(network):
    found = recipe(f"{network}-keep-0.5")
    with torch.device("cpu"):
        net = build_network(found, geometry(found.data))
    # Neither biases nor scales of batch norm: all that there is to train is drawn from the seed.
    assert set(seeded_parameters(net)) == {name for name, _ in net.named_parameters()}


def test_each_says_where_it_is_from():
    assert len(NAMES) == len(set(NAMES)) == 44
    for found in published_recipes():
        if found.name in NAMES:
            assert found.about.startswith("Rare Gems, Table ")
