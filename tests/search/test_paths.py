"""Layers that cannot be scored, weights without a path, and layer collapse."""

import re
import warnings

import pytest
import torch
from torch import nn

import pabzip
from pabzip.errors import SearchError
from pabzip.search import magnitude, synflow

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


class Side(nn.Module):
    """Two layers, and a third beside them whose output a function puts to use, or not."""

    def __init__(self, use):
        super().__init__()
        self.first, self.side = nn.Linear(4, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.last, self.use = nn.Linear(8, 2, bias=False), use

    def forward(self, x):
        h = self.first(x)
        return self.last(self.use(h, self.side))


def never(h, layer):
    return h


def forgotten(h, layer):
    layer(h)
    return h


def blocked(h, layer):
    return h + layer(h).detach()


def multiplied_by_zero(h, layer):
    return h + 0.0 * layer(h)


class Step(torch.autograd.Function):
    """Saturates out of sight of the linear forms: its gradient is zero."""

    @staticmethod
    def forward(ctx, h):
        return h.sign()

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros_like(gradient)


def saturated(h, layer):
    return h + Step.apply(layer(h))


def net_of(use):
    return pabzip.init_(Side(use), 1)


@DTYPES
@pytest.mark.parametrize("use", [forgotten, blocked, multiplied_by_zero, saturated])
def test_a_layer_that_cannot_be_scored_is_named(use, dtype):
    net = net_of(use)
    before = [p.detach().clone() for p in net.parameters()]
    problem = r"scores of 'side.weight': expected some above zero, found none: .* with skip=, or"
    with pytest.raises(SearchError, match=problem):
        synflow(net, 0.3, input_shape=(4,), iterations=3, dtype=dtype)
    assert all(torch.equal(one, two) for one, two in zip(before, net.parameters(), strict=True))
    masks = synflow(net, 0.3, input_shape=(4,), iterations=3, dtype=dtype, skip=["side"])
    assert list(masks) == ["first.weight", "last.weight"]


@DTYPES
def test_a_layer_without_a_path_is_never_kept_by_position(dtype):
    # 48 of the 112 weights have a path: those of a layer that is not called have none.
    for iterations in (1, 4):
        net = net_of(never)
        masks = synflow(net, 48 / 112, input_shape=(4,), iterations=iterations, dtype=dtype)
        assert masks["first.weight"].all()
        assert masks["last.weight"].all()
        assert not masks["side.weight"].any()
        problem = (
            r"keep_ratio: asks for 49 survivors, found only 48 weights with a path .*; no "
            r"weight of 'side.weight' has one. Lower keep_ratio, or leave such layers out"
        )
        net = net_of(never)
        with pytest.raises(SearchError, match=problem):
            synflow(net, 49 / 112, input_shape=(4,), iterations=iterations, dtype=dtype)
        assert bool((net.side.weight != 0).all())
    assert all(mask.all() for mask in synflow(net, 1.0, input_shape=(4,), dtype=dtype).values())


@DTYPES
def test_a_threshold_among_zero_scores_is_refused(dtype):
    # Half of the hidden units reach no output: 24 of the 48 weights have a path.
    def net():
        return pabzip.init_(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Halved(8, 2)), 1)

    masks = synflow(net(), 24 / 48, input_shape=(4,), iterations=2, scope="layer", dtype=dtype)
    assert masks["0.weight"].sum() == 16
    for scope, asked, found, name in [
        ("global", 25, 24, "0.weight"), ("layer", 17, 16, "0.weight"),
    ]:  # fmt: skip
        problem = (
            f"keep_ratio: asks for {asked} survivors, found only {found} weights with a path from "
            f"the input to the output, so the threshold falls among the zero scores of '{name}'. "
            "Lower keep_ratio, use more iterations or a larger input, or leave"
        )
        whole = 48 if scope == "global" else 32
        before = net()
        with pytest.raises(SearchError, match=re.escape(problem)):
            synflow(before, asked / whole, input_shape=(4,), iterations=2, scope=scope, dtype=dtype)
        assert all(bool((p != 0).all()) for p in before.parameters() if p.dim() > 1)


class Halved(nn.Linear):
    """Multiplies the second half of its inputs by zero."""

    def forward(self, x):
        return super().forward(x * torch.arange(8, 0, -1).gt(4))


@pytest.mark.parametrize("search", [synflow, magnitude])
def test_an_empty_layer_with_a_bypass_is_named(search):
    net = net_of(lambda h, layer: h + layer(h))
    with torch.no_grad():
        net.side.weight.mul_(1e-3)
    problem = "nothing is left of 'side.weight'; the network has a way around them"
    with pytest.warns(UserWarning, match=problem):
        masks = search(net, 0.3, input_shape=(4,))
    assert not masks["side.weight"].any()
    assert masks["first.weight"].any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search(net_of(lambda h, layer: h + layer(h)), 0.5, input_shape=(4,))


@DTYPES
def test_collapse_in_an_early_round_names_the_layer_that_went_then(dtype):
    # One round takes the middle whole; the rounds after it find no path at all.
    net = nn.Sequential(nn.Linear(1, 30), nn.Linear(30, 30), nn.Linear(30, 1))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(-1.0)
    weights = {name: p for name, p in net.named_parameters() if p.dim() > 1}
    with pytest.raises(SearchError, match=r"layer collapse: nothing is left of '1.weight', and no"):
        synflow(net, 3 / 960, input_shape=(1,), iterations=2, dtype=dtype, weights=weights)


def test_an_empty_layer_without_an_input_shape():
    net = net_of(lambda h, layer: h + layer(h))
    with torch.no_grad():
        net.side.weight.mul_(1e-3)
    with pytest.raises(
        SearchError,
        match=r"nothing is left of 'side.weight'; expected survivors in every layer. Raise",
    ):
        magnitude(net, 0.3)
    assert bool((net.side.weight != 0).all())
    assert not magnitude(net, 0.3, input_shape=(4,))["side.weight"].any()
