"""BitOPs against numbers worked out by hand, and against the paper's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pabzip import models
from pabzip.errors import RecipeError, SearchError
from pabzip.train import (
    PsgRecipe,
    Recipe,
    bit_operations,
    count_macs,
    estimate_costs,
    layer_costs,
    method_costs,
    read_recipe,
    step_costs,
)

FULL = 3 * 32 * 32


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.fc = nn.Linear(3 * 8 * 8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(self.norm(self.conv(x)))
        return self.fc(x.flatten(1))


# conv: 4x4 positions, 4 outputs, 1 input each, 3x3; up: 4x4 positions, 4 to 3 channels, 2x2.
MACS = {"conv.weight": 16 * 4 * 1 * 9, "up.weight": 16 * 4 * 3 * 4, "fc.weight": 192 * 5}


def test_a_dense_net_costs_three_products_of_full_precision() -> None:
    net = Net()
    assert count_macs(net, (2, 8, 8)) == MACS
    costs = layer_costs(net, (2, 8, 8))
    assert {cost.name: cost.macs for cost in costs} == MACS
    for cost in costs:
        assert cost.forward == cost.input_gradient == cost.weight_gradient == cost.macs * 1024
        assert cost.total == cost.macs * FULL
    assert bit_operations(net, (2, 8, 8)) == sum(MACS.values()) * FULL


def test_masks_and_bits_count_for_the_masked_layers_alone() -> None:
    mask = torch.zeros(4, 1, 3, 3, dtype=torch.bool)
    mask.view(-1)[:9] = True
    found = bit_operations(
        Net(), (2, 8, 8), {"conv.weight": mask}, input_bits=8, weight_bits=4, gradient_bits=16
    )
    conv = MACS["conv.weight"] * 0.25 * (32 * 32 + 16 * 4 + 16 * 8)
    assert found == conv + (MACS["up.weight"] + MACS["fc.weight"]) * FULL


def test_each_product_costs_the_bits_of_its_operands() -> None:
    mask = torch.ones(5, 192, dtype=torch.bool)
    mask[:, ::2] = False
    costs = layer_costs(
        Net(), (2, 8, 8), {"fc.weight": mask}, input_bits=3, weight_bits=5, gradient_bits=7
    )
    conv, up, fc = costs
    assert [cost.masked for cost in costs] == [False, False, True]
    assert (conv.kept, fc.kept) == (1.0, 0.5)
    half = MACS["fc.weight"] // 2
    assert fc.forward == half * 32 * 32
    assert fc.input_gradient == half * 7 * 5
    assert fc.weight_gradient == half * 7 * 3
    assert up.total == MACS["up.weight"] * FULL


def test_an_exact_input_gradient_costs_full_precision() -> None:
    masks = {"fc.weight": torch.ones(5, 192, dtype=torch.bool)}
    bits = {"input_bits": 3, "weight_bits": 5, "gradient_bits": 7}
    cheap, exact = (
        layer_costs(Net(), (2, 8, 8), masks, **bits, input_gradient=name)[-1]
        for name in ("quantized", "exact")
    )
    assert cheap.input_gradient == MACS["fc.weight"] * 7 * 5
    assert exact.input_gradient == MACS["fc.weight"] * 32 * 32
    assert (exact.forward, exact.weight_gradient) == (cheap.forward, cheap.weight_gradient)
    found = bit_operations(Net(), (2, 8, 8), masks, **bits, input_gradient="exact")
    assert found - bit_operations(Net(), (2, 8, 8), masks, **bits) == (
        exact.input_gradient - cheap.input_gradient
    )
    psg = PsgRecipe(input_bits=3, weight_bits=5, gradient_bits=7, input_gradient="exact")
    costs = method_costs(Net(), (2, 8, 8), masks, psg=psg)
    assert costs["pab-bop-psg"][-1] == exact
    assert costs["pab-bop"][-1].total == MACS["fc.weight"] * FULL


def test_dropped_steps_lower_the_average() -> None:
    whole, dropped = (layer_costs(Net(), (2, 8, 8), drop_ratio=ratio) for ratio in (0.0, 0.25))
    for before, after in zip(whole, dropped, strict=True):
        assert after.total == 0.75 * before.total
    assert bit_operations(Net(), (2, 8, 8), drop_ratio=0.5) == sum(MACS.values()) * FULL / 2


def test_a_depthwise_layer_costs_a_product_each_weight_and_position() -> None:
    layer = nn.Conv2d(6, 12, 3, padding=1, groups=6)
    assert count_macs(layer, (6, 5, 7)) == {"weight": 12 * 9 * 5 * 7}
    strided = nn.ConvTranspose1d(4, 8, 5, stride=3, groups=2)
    assert count_macs(strided, (4, 10)) == {"weight": 4 * 4 * 5 * 10}


def test_a_mask_counts_for_every_layer_that_shares_its_weight() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    mask = torch.eye(4, dtype=torch.bool)
    found = layer_costs(nn.Sequential(first, second), (4,), {"0.weight": mask})
    assert [(cost.name, cost.kept) for cost in found] == [("0.weight", 0.25), ("1.weight", 0.25)]


def test_the_methods_of_the_table() -> None:
    net = Net()
    masks = {
        "conv.weight": torch.arange(36).view(4, 1, 3, 3) % 4 == 0,
        "up.weight": torch.arange(48).view(4, 3, 2, 2) % 8 == 0,
    }
    psg = PsgRecipe(input_bits=8, weight_bits=4, gradient_bits=16)
    costs = method_costs(net, (2, 8, 8), masks, psg=psg, drop_ratio=0.5)
    totals = {name: sum(cost.total for cost in layers) for name, layers in costs.items()}
    seeded = MACS["conv.weight"] / 4 + MACS["up.weight"] / 8
    dense = 0.5 * sum(MACS.values()) * FULL
    pab = 0.5 * (seeded + MACS["fc.weight"]) * FULL
    cheap = 0.5 * (seeded * (1024 + 16 * 12) + MACS["fc.weight"] * FULL)
    assert totals == {
        "pab-bop": pab, "pab-bop-psg": cheap, "pab-latent": pab, "pab-latent-psg": cheap,
        "sgd": pab, "signsgd": pab, "dense-sgd": dense, "dense-sgd-short": dense,
    }  # fmt: skip
    for method, layers in costs.items():
        recipe = Recipe(method=method, psg=psg, drop_ratio=0.5)
        assert list(step_costs(net, (2, 8, 8), masks, recipe).layers) == layers
    assert list(costs["sgd"]) == layer_costs(net, (2, 8, 8), masks, drop_ratio=0.5)


def test_counting_leaves_the_network_as_it_was() -> None:
    net = Net()
    net.norm.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    bit_operations(net, (2, 8, 8))
    assert net.training
    assert not net.norm.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not net.conv._forward_hooks


def test_a_layer_that_runs_twice_counts_twice() -> None:
    layer = nn.Linear(3, 3)
    assert bit_operations(nn.Sequential(layer, layer), (3,)) == 2 * 9 * FULL


@pytest.mark.parametrize(
    ("options", "printed"),
    [({}, 16.11e12), ({"late_stride": True}, 18.28e12), ({"published": True}, 18.28e12)],
)
def test_a_late_stride_is_what_the_paper_counted_for_the_wide_network(options, printed) -> None:
    net = models.build("wideresnet28", options)
    assert bit_operations(net, (3, 32, 32)) == pytest.approx(printed, rel=2e-4)  # Table 2


def test_resnet18_costs_what_the_paper_says() -> None:
    net = models.build("resnet18")
    dense = bit_operations(net, (3, 32, 32))
    assert dense == pytest.approx(1.706e12, rel=1e-3)  # Table 1: 1.71 Tr
    masks = {
        name: torch.arange(value.numel()).view(value.shape) % 10 == 0
        for name, value in net.named_parameters()
        if value.dim() > 1
    }
    kept = bit_operations(net, (3, 32, 32), masks)
    bits = {"input_bits": 8, "weight_bits": 8, "gradient_bits": 16}
    assert kept == pytest.approx(dense / 10, rel=1e-3)
    assert bit_operations(net, (3, 32, 32), masks, **bits) == pytest.approx(kept * 1280 / 3072)


def test_a_mask_of_no_weight_is_refused():
    net = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(SearchError, match=r"masks\['0.wieght'\]: expected the name of a parameter"):
        layer_costs(net, (4,), {"0.wieght": torch.ones(3, 4, dtype=torch.bool)})


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs):
        return self.layer(input=inputs)


def test_layers_called_by_keyword_are_counted():
    assert [cost.macs for cost in layer_costs(ByKeyword(), (4,))] == [12]


def estimate(**search):
    return estimate_costs(
        read_recipe(None, {"arch": "lenet-300-100", "search": {"iterations": 3, **search}})
    )


def test_the_recipes_scope_decides_what_each_layer_keeps():
    for scope, even in (("layer", True), ("global", False)):
        kept = [layer.kept for layer in estimate(scope=scope).layers["pab-bop"]]
        assert (kept == pytest.approx([0.1] * 3, abs=1e-3)) == even


def test_another_search_is_refused():
    with pytest.raises(RecipeError, match=r"search\.method: expected synflow, .*found 'snip'"):
        estimate(method="snip")
