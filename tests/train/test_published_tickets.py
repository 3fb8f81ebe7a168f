"""The recipes of the papers whose methods learn scores."""

from __future__ import annotations

import re

import pytest
from torch import nn

from pabzip.data.registry import geometry
from pabzip.init import seeding
from pabzip.registry import METHODS
from pabzip.train.build import build_network
from pabzip.train.recipes import find_recipe, published_recipes, read_recipe

ABOUT = {
    found.name: found.about
    for found in published_recipes()
    if found.name.startswith(("mpt-", "connectivities-"))
}


def recipe(name):
    return read_recipe(find_recipe(name))


def trained(net):
    """Return the kinds of modules that hold parameters which the seed did not draw."""
    specs = seeding(net).specs
    names = {name for name, _ in net.named_parameters() if name not in specs}
    return {type(net.get_submodule(name.rpartition(".")[0])) for name in names}


@pytest.mark.parametrize("name", ABOUT)
def test_a_recipe_says_what_it_repeats(name):
    papers = "Multi-Prize Tickets|Training connectivities"
    assert re.match(rf"({papers}), (Table|Figure)", ABOUT[name])
    assert re.search(r"The paper: (\d\d(\.\d+)? %|a curve)\.$", ABOUT[name])


def test_there_is_one_for_every_row_that_pabzip_has_the_network_for():
    assert sum(name.startswith("mpt-1-32") for name in ABOUT) == 4 + 2 + 1 + 2
    assert sum(name.startswith("mpt-1-1-") for name in ABOUT) == 4 + 2
    assert sum(name.startswith("connectivities-") for name in ABOUT) == 4 * 4 + 3 + 1


@pytest.mark.parametrize("name", [name for name in ABOUT if name.startswith("mpt-")])
def test_multi_prize_tickets_follow_appendix_a(name):
    found = recipe(name)
    own, binary = found.biprop, name.startswith("mpt-1-1-")
    assert (found.method, own.gradient, own.scope, own.schedule) == (
        "biprop", "published", "layer", "cosine"
    )  # fmt: skip
    assert found.arch_options.get("binary_activations", False) == binary
    assert own.optimizer == ("adam" if binary else "sgd")
    table = {
        "conv": ((250, 128, 0.1, 0.9), 0.0 if binary else 1e-4),
        "resn": ((250, 256, 0.1, 0.9), 5e-4),
        "vgg-": ((600, 128, 3.63e-3, 0.9), 0.0) if binary else ((250, 256, 0.1, 0.9), 5e-4),
        "wide": ((120, 256, 0.256, 0.875), 3.051757812e-5),
    }
    row = (found.epochs, found.batch_size, own.lr, own.momentum), own.weight_decay
    assert row == table[found.arch[:4]]
    pruned = float(re.search(r"(\d+) % pruned", ABOUT[name])[1])
    assert found.keep_ratio == pytest.approx(1 - pruned / 100)
    scheme = "kaiming_signed_constant" if found.data == "imagenet" else "kaiming_normal"
    assert found.scheme == scheme
    net = build_network(found, geometry(found.data))
    learned = {nn.BatchNorm2d} if name.endswith("-bn") else set()
    assert trained(net) == learned
    assert not learned or (found.sgd.schedule, found.sgd.lr) == (
        "cosine",
        0.1 if own.lr < 0.2 else own.lr,
    )


@pytest.mark.parametrize("name", [name for name in ABOUT if name.startswith("connectivities-")])
def test_connectivities_follow_table_a2(name):
    found = recipe(name)
    assert (found.batch_size, found.scheme, found.augment) == (25, "kaiming_signed_constant", False)
    net = build_network(found, geometry(found.data))
    assert not trained(net)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    rule, _ = METHODS.get(found.method)(net, found)
    assert found.method in name or found.method == "free-pruning"
    assert (found.connectivity.positive == 1.0) == name.endswith("-all-positive")
    rates = (1e-3, 5e-4) if "flipping" in found.method else (1e-3, 3e-3)
    assert rule.param_groups[0]["lr"] == rates["conv" in found.arch]
    if found.connectivity.weight_removal:
        scales = [spec.scale for spec in seeding(net).specs.values()]
        assert scales[1:] == [1.0] * (len(scales) - 1)
        assert 0 < scales[0] < 0.1
