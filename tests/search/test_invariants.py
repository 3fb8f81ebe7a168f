"""What holds for every search: exact counts, shots that only prune, and a network left alone."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import pabzip.init
from pabzip.errors import SearchError
from pabzip.search import (
    MagnitudeScorer,
    exponential_schedule,
    grasp,
    iterative_search,
    linear_schedule,
    magnitude,
    prune_groups,
    random,
    snip,
    synflow,
)

SHAPE = (3, 6, 6)


class Net(nn.Module):
    def __init__(self, breaks=None):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False)
        self.instance = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)
        self.frozen = nn.Parameter(torch.ones(8), requires_grad=False)
        self.breaks, self.calls = breaks, 0

    def forward(self, x):
        self.calls += 1
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.instance(self.deep(x)))
        if self.breaks == self.calls:
            torch.rand(3)
            raise KeyError("mine")
        return self.head(self.dropout(x.mean((2, 3))) * self.frozen)


def net_of(seed=1, breaks=None):
    net = pabzip.init.init_(Net(breaks), seed)
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.dim() == 1:
                tensor.copy_(torch.linspace(0.5, 1.5, tensor.numel()))
    net.train()
    net.norm.eval()
    net.stem.weight.grad = torch.full_like(net.stem.weight, 3.0)
    net.head.bias.requires_grad_(False)
    return net


def batches():
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(size, *SHAPE, generator=generator), torch.arange(size) % 4) for size in (5, 4)
    ]


SEARCHES = {
    "synflow": lambda net, keep, **how: synflow(net, keep, input_shape=SHAPE, iterations=3, **how),
    "synflow-float32": lambda net, keep, **how: synflow(
        net, keep, input_shape=SHAPE, iterations=3, dtype=torch.float32, **how
    ),
    "snip": lambda net, keep, **how: snip(net, keep, example_inputs=batches(), iterations=2, **how),
    "grasp": lambda net, keep, **how: grasp(
        net, keep, example_inputs=batches(), iterations=2, **how
    ),
    "magnitude": lambda net, keep, **how: magnitude(net, keep, input_shape=SHAPE, **how),
    "random": lambda net, keep, **how: random(net, keep, input_shape=SHAPE, **how),
}


def snapshot(net):
    return {
        "state": {name: value.clone() for name, value in net.state_dict().items()},
        "modes": [module.training for module in net.modules()],
        "asks": [p.requires_grad for p in net.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in net.parameters()],
        "random": torch.get_rng_state(),
    }


def assert_same(before, after, but=()):
    for name, value in before["state"].items():
        assert name in but or torch.equal(value, after["state"][name]), name
    assert before["modes"] == after["modes"]
    assert before["asks"] == after["asks"]
    for one, other in zip(before["gradients"], after["gradients"], strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
    assert torch.equal(before["random"], after["random"])


@pytest.mark.parametrize("name", SEARCHES)
def test_nothing_but_pruned_weights_changes(name):
    net = net_of()
    before = snapshot(net)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        masks = SEARCHES[name](net, 0.4)
    assert_same(before, snapshot(net), but=masks)
    for key, mask in masks.items():
        found, drawn = net.state_dict()[key], before["state"][key]
        expected = torch.where(mask, drawn, torch.zeros(()))
        assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


FUNCTIONS = {"synflow": synflow, "snip": snip, "grasp": grasp, "magnitude": magnitude}


class Shared(nn.Module):
    """A network with one layer, one norm and one recurrent layer under two names each."""

    def __init__(self, breaks=False):
        super().__init__()
        self.first = self.again = nn.Linear(6, 6)
        self.norm = self.same = nn.BatchNorm1d(6)
        self.steps = self.more = nn.GRU(6, 6)
        self.last = nn.Linear(6, 3)
        self.breaks = breaks

    def forward(self, x):
        x = self.norm(self.first(x))
        x = self.steps(self.same(self.again(x)).expand(2, -1, -1))[0]
        if self.breaks:
            raise ValueError("broken")
        return self.last(self.more(x)[0][-1])


def identities(net):
    """Return which tensors a network has, where."""
    tables = [table for m in net.modules() for table in (m._parameters, m._buffers)]
    places = [[(key, id(value)) for key, value in table.items()] for table in tables]
    return places, list(map(id, net.steps._flat_weights))


@pytest.mark.parametrize("breaks", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_layers_under_two_names_keep_their_parameters(name, breaks):
    net = pabzip.init_(Shared(breaks), 3)
    before = identities(net)
    options = {"example_inputs": torch.randn(4, 6), "targets": torch.tensor([0, 1, 2, 0])}
    if name == "magnitude":
        options = {}
    with pytest.raises(SearchError) if breaks and options else nullcontext():
        masks = FUNCTIONS[name](net, 0.5, **options)
        assert torch.equal(net.again.weight != 0, masks["first.weight"])
    assert identities(net) == before


@pytest.mark.parametrize("name", ["synflow", "synflow-float32", "snip", "grasp"])
@pytest.mark.parametrize("breaks", [1, 2])
def test_an_exception_leaves_everything(name, breaks):
    net = net_of(breaks=breaks)
    before = snapshot(net)
    with pytest.raises(KeyError, match="mine"):
        SEARCHES[name](net, 0.4)
    assert_same(before, snapshot(net))


@pytest.mark.parametrize("name", SEARCHES)
@settings(max_examples=8, deadline=None)
@given(keeps=st.lists(st.floats(0.3, 1.0), min_size=1, max_size=3), layer=st.booleans())
@example(keeps=[0.5, 0.46875], layer=True)  # more weights without a path than are pruned
@example(keeps=[0.5, 0.495], layer=False)
def test_counts_are_exact_over_several_shots(name, keeps, layer):
    net = net_of()
    weights = pabzip.init.seeded_parameters(net)
    before = {key: torch.ones_like(value, dtype=torch.bool) for key, value in weights.items()}
    for keep in sorted(keeps, reverse=True):
        masks = SEARCHES[name](net, keep, scope="layer" if layer else "global")
        groups = [[key] for key in masks] if layer else [list(masks)]
        for group in groups:
            total = sum(weights[key].numel() for key in group)
            assert sum(int(masks[key].sum()) for key in group) == total - int((1 - keep) * total)
        for key, mask in masks.items():
            assert torch.equal(weights[key] != 0, mask)
            assert not bool((mask & ~before[key]).any())
        before = masks


@pytest.mark.parametrize("name", ["synflow", "synflow-float32", "snip", "grasp"])
def test_the_linear_schedule_is_taken(name):
    found = SEARCHES[name](net_of(), 0.3, schedule="linear")
    total = sum(mask.numel() for mask in found.values())
    assert sum(int(mask.sum()) for mask in found.values()) == total - int(0.7 * total)
    with pytest.raises(SearchError, match="schedule: expected one of exponential, linear, fo"):
        SEARCHES[name](net_of(), 0.3, schedule="cubic")


@given(
    keep=st.floats(0.01, 1.0), iterations=st.integers(1, 60), weights=st.integers(100, 10**8),
    left=st.floats(0.0, 1.0),
)  # fmt: skip
def test_schedules_prune_nothing_until_they_ask_for_less_than_is_left(
    keep, iterations, weights, left
):
    target = weights - int((1 - keep) * weights)
    alive = target + round(left * (weights - target))
    for schedule in (exponential_schedule, linear_schedule):
        counts = schedule(keep, iterations, weights, alive=alive)
        assert counts[-1] == target
        assert len(counts) == iterations
        assert counts == sorted(counts, reverse=True)
        whole = schedule(keep, iterations, weights)
        assert counts == [min(alive, count) for count in whole]
        assert whole == schedule(keep, iterations, weights, alive=weights)
    assert linear_schedule(0.5, 4, 1000, alive=800) == [800, 750, 625, 500]
    assert exponential_schedule(0.1, 4, 1000, alive=400) == [400, 317, 178, 100]


def test_rounds_that_prune_nothing_are_not_scored():
    """The first rounds of a later search, whose schedule starts from all weights, as published."""

    class Counting(MagnitudeScorer):
        calls = 0

        def scores(self, masks):
            self.calls += 1
            return super().scores(masks)

    net, told = net_of(), []
    weights = pabzip.init.seeded_parameters(net)
    groups = prune_groups(weights, 0.5, "global")
    iterative_search(net, weights, Counting(weights), groups)
    scorer, groups = Counting(weights), prune_groups(weights, 0.25, "global")
    iterative_search(
        net, weights, scorer, groups, SHAPE, 10, on_iteration=lambda at, of: told.append(at)
    )
    assert told == list(range(1, 11))
    assert scorer.calls == 6  # the first, and the five that ask for less than half
