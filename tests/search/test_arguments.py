"""All searches take the same arguments, and are registered with what they need."""

import inspect

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pabzip
from pabzip import search
from pabzip.errors import RecipeError, SearchError, SeedError
from pabzip.registry import SEARCHES

COMMON = {
    "input_shape": None, "example_inputs": None, "targets": None, "loss": None, "output": None,
    "only": None, "skip": None, "weights": None, "iterations": None, "schedule": "exponential",
    "scope": "global", "seed": None, "on_iteration": None,
}  # fmt: skip
NAMES = ("synflow", "snip", "grasp", "magnitude", "random", "layerwise-random", "smart-ratio")


def net_of(seed=2):
    torch.manual_seed(0)  # for the biases
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    return pabzip.init_(net, seed)


def samples():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(12, 1, 6, 6, generator=generator), torch.arange(12) % 3


def data_for(name):
    if not SEARCHES.facts(name)["needs_data"]:
        return {}
    return dict(zip(("example_inputs", "targets"), samples(), strict=True))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_the_registered_searches():
    assert set(SEARCHES.names) == set(NAMES)
    for name in NAMES:
        assert SEARCHES.get(name) is getattr(search, name.replace("-", "_"))
    facts = {name: SEARCHES.facts(name) for name in NAMES}
    assert {name for name in NAMES if facts[name]["needs_data"]} == {"snip", "grasp"}
    assert {name: facts[name]["rounds"] for name in NAMES if facts[name]["rounds"] != 1} == {
        "synflow": 100
    }
    with pytest.raises(RecipeError, match="found 'sinflow'; did you mean synflow"):
        SEARCHES.get("sinflow")


@pytest.mark.parametrize("name", NAMES)
def test_one_signature(name):
    net, ratio, *rest = inspect.signature(SEARCHES.get(name)).parameters.values()
    assert (net.name, ratio.name) == ("net", "keep_ratio")
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in rest)
    assert {p.name: p.default for p in rest[: len(COMMON)]} == COMMON
    own = {p.name for p in rest[len(COMMON) :]}
    assert own - {"temperature"} <= {
        "dtype", "ratios", "batch_norm", "ratio_form", "linear_keep_ratio"
    }  # fmt: skip
    assert own == set(SEARCHES.facts(name).get("takes", ()))


def test_an_argument_that_is_not_there():
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'sead'"):
        search.random(net_of(), 0.5, sead=1)


@pytest.mark.parametrize("name", NAMES)
def test_every_search_takes_all_of_them(name):
    net, seen = net_of(), []
    masks = SEARCHES.get(name)(
        net, 0.5, input_shape=(1, 6, 6), **data_for(name), only=["0", "3"], skip=None,
        iterations=2, schedule="linear", scope="layer", seed=4,
        on_iteration=lambda *at: seen.append(at),
    )  # fmt: skip
    # Smart ratios keep a fraction of Linear layers, and of 36 weights no more than there are.
    expected = (36, 57) if name == "smart-ratio" else (18, 96)
    assert tuple(int(mask.sum()) for mask in masks.values()) == expected
    assert seen in ([], [(1, 2), (2, 2)])


@pytest.mark.parametrize("name", NAMES)
def test_the_published_number_of_rounds_is_the_default(name):
    shape = {} if SEARCHES.facts(name)["needs_data"] else {"input_shape": (1, 6, 6)}
    rounds = SEARCHES.facts(name)["rounds"]
    one = SEARCHES.get(name)(net_of(), 0.5, **shape, **data_for(name))
    two = SEARCHES.get(name)(net_of(), 0.5, iterations=rounds, **shape, **data_for(name))
    assert same(one, two)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("choice", "left"),
    [
        ({"only": ["0"]}, "0.weight"),
        ({"skip": "3.weight"}, "0.weight"),
        ({"only": lambda module, name: isinstance(module, nn.Linear)}, "3.weight"),
        ({"skip": lambda module, name: name == "0"}, "3.weight"),
    ],
)
def test_weights_are_chosen_by_name_or_predicate(name, choice, left):
    if (name, left) == ("smart-ratio", "3.weight"):
        pytest.skip("smart ratios are those of convolutions")
    net = net_of()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    masks = SEARCHES.get(name)(net, 0.5, input_shape=(1, 6, 6), **data_for(name), **choice)
    assert list(masks) == [left]
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]) == (key != left)


def test_choices_that_do_not_fit():
    net = net_of()
    with pytest.raises(SeedError, match=r"only= names 'conv'"):
        search.random(net, 0.5, only=["conv"])
    with pytest.raises(SearchError, match=r"at least one weight to search, found none; widen"):
        search.random(net, 0.5, skip=["0", "3"])
    with pytest.raises(SearchError, match=r"weights: expected none beside only= or skip="):
        search.random(net, 0.5, skip=["0"], weights={"3.weight": net[3].weight})


@pytest.mark.parametrize("method", [search.synflow, search.magnitude, search.random])
def test_a_batch_tells_the_shape(method):
    inputs, _ = samples()
    one = method(net_of(), 0.5, example_inputs=inputs)
    assert same(one, method(net_of(), 0.5, input_shape=(1, 6, 6)))
    with pytest.raises(SearchError, match=r"input_shape: expected \(1, 6, 6\), the shape of the"):
        method(net_of(), 0.5, example_inputs=inputs, input_shape=(1, 8, 8))
    with pytest.raises(SearchError, match=r"example_inputs: expected a tensor, .* found list of 0"):
        method(net_of(), 0.5, example_inputs=[inputs])
    with pytest.raises(SearchError, match=r"example_inputs: .* with a tensor in it, found dict;"):
        method(net_of(), 0.5, example_inputs={"flag": True})


def test_synflow_without_a_shape():
    with pytest.raises(SearchError, match=r"synflow: expected input_shape=, .* found neither"):
        search.synflow(net_of(), 0.5)


def test_magnitude_and_random_need_no_input():
    for name in ("magnitude", "random", "layerwise-random", "smart-ratio"):
        method = SEARCHES.get(name)
        assert same(method(net_of(), 0.5), method(net_of(), 0.5, input_shape=(1, 6, 6)))


@pytest.mark.parametrize("method", [search.snip, search.grasp])
def test_every_form_of_the_images(method):
    inputs, labels = samples()
    expected = method(net_of(), 0.5, example_inputs=inputs, targets=labels)
    assert same(expected, method(net_of(), 0.5, example_inputs=[(inputs, labels)]))
    batches = list(zip(inputs.split(5), labels.split(5), strict=True))
    expected = method(net_of(), 0.5, example_inputs=batches)
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=5)
    assert same(expected, method(net_of(), 0.5, example_inputs=loader))
    apart = method(net_of(), 0.5, example_inputs=inputs.split(5), targets=labels.split(5))
    assert same(expected, apart)
    with pytest.raises(SearchError, match=r"example_inputs: expected training images and targets="):
        method(net_of(), 0.5, input_shape=(1, 6, 6))
    with pytest.raises(SearchError, match=r"targets: expected labels for 3 batches .* found 2"):
        method(net_of(), 0.5, example_inputs=inputs.split(5), targets=labels.split(6))
    with pytest.raises(SearchError, match=r"batches\[0\]: expected a pair .* found torch.float32"):
        method(net_of(), 0.5, example_inputs=inputs)
