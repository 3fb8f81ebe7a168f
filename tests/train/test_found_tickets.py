"""Search now, train later: the ticket in between, and what it must agree with."""

from __future__ import annotations

import pytest
import torch

import pabzip
from pabzip import data
from pabzip.checkpoint import load_checkpoint, network_from_checkpoint, save_checkpoint
from pabzip.errors import CheckpointError, RecipeError
from pabzip.registry import SEARCHES, Registration
from pabzip.train import Recipe, SearchRecipe, build_network, estimate_costs, to_dict
from pabzip.train.pruning import apply_ticket, search_masks
from pabzip.train.run import find_ticket


@pytest.fixture(scope="module")
def splits():
    return data.load("digits")


@pytest.fixture(scope="module")
def recipe():
    return Recipe(
        arch="conv2", arch_options={"width": 4}, seed=9, keep_ratio=0.3, epochs=2,
        search=SearchRecipe(iterations=4),
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(recipe, splits, tmp_path_factory):
    path = tmp_path_factory.mktemp("found") / "found.pt"
    return path, find_ticket(recipe, output=path, splits=splits)


def test_the_ticket_is_a_checkpoint_and_packs(recipe, splits, found, tmp_path):
    path, result = found
    checkpoint = load_checkpoint(path)
    assert checkpoint.results == result.to_dict()
    assert (result.arch, result.search, result.keep_ratio, result.epochs) == (
        "conv2", "synflow", 0.3, 0,
    )  # fmt: skip
    assert result.survivors == result.weights - int(0.7 * result.weights)
    assert result.bitops == estimate_costs(recipe).totals["pab-bop"]
    net = network_from_checkpoint(checkpoint)
    assert sum(int((w != 0).sum()) for w in pabzip.init.seeded_parameters(net).values()) == (
        result.survivors
    )
    report = pabzip.pack(path, tmp_path / "found.pabz")
    assert report["survivors"] == result.survivors


def test_training_from_the_ticket_begins_as_after_the_search(recipe, splits, found):
    searched, loaded = build_network(recipe, splits), build_network(recipe, splits)
    expected = search_masks(searched, recipe, splits)
    masks = apply_ticket(loaded, recipe, found[0])
    assert list(masks) == list(expected)
    assert all(torch.equal(masks[name], expected[name]) for name in expected)
    for name, value in searched.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_layers_that_the_search_skips_are_whole_in_the_ticket(recipe, splits, tmp_path):
    other = recipe.replace(search=recipe.search.replace(skip=("features.0", "fc2")))
    result = find_ticket(other, output=tmp_path / "f.pt", splits=splits)
    masks = apply_ticket(build_network(other, splits), other, tmp_path / "f.pt")
    whole = [name for name, mask in masks.items() if bool(mask.all())]
    assert whole == ["features.0.weight", "fc2.weight"]
    assert result.survivors == sum(int(mask.sum()) for mask in masks.values())
    with pytest.raises(CheckpointError, match=r"search\.skip: \['features.0', 'fc2'\] there"):
        apply_ticket(build_network(recipe, splits), recipe, tmp_path / "f.pt")


def test_the_search_leaves_no_trace(recipe, splits, tmp_path):
    before = torch.get_rng_state()
    seen = []
    find_ticket(
        recipe, output=tmp_path / "f.pt", splits=splits, on_iteration=lambda *at: seen.append(at)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert seen == [(i, 4) for i in range(1, 5)]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"seed": 10}, r"seed: 9 there, 10 here"),
        ({"scheme": "kaiming_uniform"}, r"init\.\S+: InitSpec\(distribution='normal'"),
        ({"classifier": "seeded"}, r"init\.\S+: nothing there, InitSpec"),
        ({"keep_ratio": 0.2}, r"found differences: keep_ratio: 0.3 there, 0.2 here; train it"),
        ({"arch_options": {"width": 8}}, r"arch_options.width: 4 there, 8 here"),
        ({"arch": "conv4"}, r"arch: conv2 there, conv4 here"),
        ({"search": SearchRecipe(iterations=4, method="snip")}, r"search.method: synflow there, s"),
    ],
)
def test_every_difference_is_shown(recipe, splits, found, changes, problem):
    other = recipe.replace(**changes)
    net = build_network(other, splits)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=problem):
        apply_ticket(net, other, found[0])
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_several_differences_stand_in_one_message(recipe, splits, found):
    other = recipe.replace(seed=1, keep_ratio=0.5)
    with pytest.raises(CheckpointError, match=r"found\.pt: .*seed: 9 .*keep_ratio: 0.3 there, 0.5"):
        apply_ticket(build_network(other, splits), other, found[0])


def test_what_does_not_decide_the_ticket_may_differ(recipe, splits, found):
    other = recipe.replace(epochs=7, method="pab-bop-psg", batch_size=3)
    assert apply_ticket(build_network(other, splits), other, load_checkpoint(found[0]))


def test_published_rounds_may_be_given_by_number(recipe, splits, tmp_path):
    search = SearchRecipe(method="snip")
    other = recipe.replace(search=search)
    find_ticket(other, output=tmp_path / "snip.pt", splits=splits)
    named = other.replace(search=search.replace(iterations=1))
    assert apply_ticket(build_network(named, splits), named, tmp_path / "snip.pt")
    more = other.replace(search=search.replace(iterations=100))
    with pytest.raises(CheckpointError, match=r"search\.iterations: 1 there, 100 here"):
        apply_ticket(build_network(more, splits), more, tmp_path / "snip.pt")


def test_data_and_batches_decide_a_ticket_of_snip(recipe, splits, tmp_path):
    other = recipe.replace(search=SearchRecipe(method="snip"))
    find_ticket(other, output=tmp_path / "snip.pt", splits=splits)
    smaller = other.replace(batch_size=16)
    with pytest.raises(CheckpointError, match=rf"batch_size: {recipe.batch_size} there, 16 here"):
        apply_ticket(build_network(smaller, splits), smaller, tmp_path / "snip.pt")


def test_whether_data_decides_is_what_the_search_registered(
    recipe, splits, found, tmp_path, monkeypatch
):
    smaller = recipe.replace(batch_size=16)
    apply_ticket(build_network(smaller, splits), smaller, found[0])
    facts = Registration("synflow", {"needs_data": True}, "pabzip.search.synflow")
    monkeypatch.setitem(SEARCHES._own, "synflow", facts)
    with pytest.raises(CheckpointError, match=rf"batch_size: {recipe.batch_size} there, 16 here"):
        apply_ticket(build_network(smaller, splits), smaller, found[0])


def test_a_dense_method_has_no_ticket(recipe, splits, tmp_path):
    dense = recipe.replace(method="dense-sgd")
    message = "expected a method that trains on a mask, found 'dense-sgd'; choose another method"
    with pytest.raises(RecipeError, match=message):
        find_ticket(dense, output=tmp_path / "f.pt", splits=splits)


def test_a_trained_ticket_is_refused(recipe, splits, found, tmp_path):
    net = network_from_checkpoint(load_checkpoint(found[0]))
    name, weight = next(iter(pabzip.init.seeded_parameters(net).items()))
    with torch.no_grad():
        weight.view(-1)[int(weight.view(-1).nonzero()[0])].neg_()
    save_checkpoint(net, tmp_path / "trained.pt", settings=to_dict(recipe))
    with pytest.raises(
        CheckpointError, match=rf"{name}: expected survivors as the seed .* found 1"
    ):
        apply_ticket(build_network(recipe, splits), recipe, tmp_path / "trained.pt")


def test_a_checkpoint_without_a_recipe_is_refused(recipe, splits, found, tmp_path):
    net = network_from_checkpoint(load_checkpoint(found[0]))
    save_checkpoint(net, tmp_path / "bare.pt")
    with pytest.raises(CheckpointError, match="recipe: nothing there, a recipe here"):
        apply_ticket(build_network(recipe, splits), recipe, tmp_path / "bare.pt")


@pytest.mark.parametrize("search", [{"epoch": 1}, {"epoch": 12, "shots": 2}])
def test_searches_between_epochs_cannot_stand_alone(recipe, splits, tmp_path, search):
    other = recipe.replace(epochs=13, search=SearchRecipe(**search))
    with pytest.raises(RecipeError, match=r"a search without training: .* search.epoch = 1"):
        find_ticket(other, output=tmp_path / "f.pt", splits=splits)
    assert not list(tmp_path.iterdir())
