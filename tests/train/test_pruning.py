"""When a run searches, what each method is told, and that several shots go on from each other."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import pabzip
from pabzip import data, search
from pabzip.data.order import order_stream, permutation
from pabzip.errors import RecipeError, SeedError
from pabzip.train import Recipe, SearchRecipe, build_network
from pabzip.train.pruning import PlannedSearch, planned_searches, search_masks
from pabzip.train.recipes import find_recipe, read_recipe
from pabzip.unmask import apply_psg


@pytest.fixture(scope="module")
def splits():
    return data.load("digits")


def recipe_of(**settings):
    chosen = {"iterations": 3, "samples": 21, **settings}
    return Recipe(
        arch="conv2", arch_options={"width": 4}, seed=2**63 + 5, keep_ratio=0.4, batch_size=10,
        epochs=60, search=SearchRecipe(**chosen),
    )  # fmt: skip


def survivors(keep, count):
    return count - int((1 - keep) * count)


def counts(masks):
    return {name: int(mask.sum()) for name, mask in masks.items()}


def test_one_search_at_initialization_or_later():
    assert planned_searches(recipe_of()) == (PlannedSearch(0, 1.0),)
    assert planned_searches(recipe_of(epoch=7)) == (PlannedSearch(7, 1.0),)


def test_shots_are_even_in_epochs_and_in_what_they_prune():
    recipe = recipe_of(shots=5, epoch=50).replace(keep_ratio=0.1)
    plan = planned_searches(recipe)
    assert [planned.epoch for planned in plan] == [10, 20, 30, 40, 50]
    kept = [planned.of(recipe.keep_ratio) for planned in plan]
    assert kept == pytest.approx([0.82, 0.64, 0.46, 0.28, 0.1])
    assert kept[-1] == 0.1
    for shots in range(1, 9):
        plan = planned_searches(recipe_of(shots=shots, epoch=shots))
        assert [planned.epoch for planned in plan] == list(range(1, shots + 1))


@pytest.mark.parametrize(
    ("shots", "epochs"), [(2, [25, 50]), (3, [16, 32, 48]), (4, [12, 24, 36, 48])]
)
def test_the_shots_of_table_4_follow_the_published_epochs(shots, epochs):
    recipe = read_recipe(find_recipe(f"table4-{shots}-shots-pab-bop"))
    plan = planned_searches(recipe)
    assert [planned.epoch for planned in plan] == epochs
    assert [planned.of(0.1) for planned in plan] == pytest.approx(
        [1 - 0.9 * shot / shots for shot in range(1, shots + 1)]
    )


def test_dense_methods_search_never():
    assert planned_searches(recipe_of().replace(method="dense-sgd")) == ()


@pytest.mark.parametrize("method", ["synflow", "snip", "grasp", "magnitude", "random"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_every_method_keeps_the_exact_count(splits, method, scope):
    recipe = recipe_of(method=method, scope=scope, schedule="linear")
    net = build_network(recipe, splits)
    masks = search_masks(net, recipe, splits)
    weights = pabzip.init.seeded_parameters(net)
    assert list(masks) == list(weights)
    if scope == "layer":
        assert counts(masks) == {name: survivors(0.4, w.numel()) for name, w in weights.items()}
    assert sum(counts(masks).values()) == pytest.approx(
        0.4 * sum(w.numel() for w in weights.values()), abs=1 if scope == "global" else 4
    )
    for name, weight in weights.items():
        assert torch.equal(weight != 0, masks[name])


def test_snip_sees_the_samples_that_the_seed_chooses(splits):
    recipe = recipe_of(method="snip", iterations=1)
    net, other = build_network(recipe, splits), build_network(recipe, splits)
    order = permutation(len(splits.train), seed=recipe.seed, stream=order_stream(2**30 - 1))[:21]
    inputs = splits.train.normalize(splits.train.images[torch.from_numpy(order)])
    labels = splits.train.labels[torch.from_numpy(order)]
    batches = [(inputs[part], labels[part]) for part in np.array_split(np.arange(21), 3)]
    expected = search.snip(other, 0.4, example_inputs=batches)
    found = search_masks(net, recipe, splits)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("method", ["snip", "grasp"])
def test_batch_norm_is_as_the_recipe_says(splits, method):
    def mask_of(**settings):
        recipe = recipe_of(method=method, scope="layer", **settings).replace(arch="resnet20")
        return search_masks(build_network(recipe, splits), recipe, splits)

    found = {kind: mask_of(batch_norm=kind) for kind in ("published", "batch", "running")}
    assert found["batch"].keys() == found["running"].keys()
    same = {
        kind: all(torch.equal(mask, found["published"][name]) for name, mask in masks.items())
        for kind, masks in found.items()
    }
    assert same == {"published": True, "batch": method == "grasp", "running": method == "snip"}


def test_more_samples_than_images(splits):
    recipe = recipe_of(method="grasp", samples=10**6)
    net = build_network(recipe, splits)
    with pytest.raises(RecipeError, match=r"search.samples: expected at most the 1\d+ training"):
        search_masks(net, recipe, splits)


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_synflow_is_told_everything(splits, precision):
    recipe = recipe_of(precision=precision, schedule="linear", scope="layer")
    net, other = build_network(recipe, splits), build_network(recipe, splits)
    seen = []
    found = search_masks(net, recipe, splits, on_iteration=lambda *at: seen.append(at))
    expected = search.synflow(
        other,
        0.4,
        input_shape=(1, 8, 8),
        iterations=3,
        dtype=getattr(torch, precision),
        schedule="linear",
        scope="layer",
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "method", ["synflow", "snip", "grasp", "magnitude", "random", "layerwise-random"]
)
def test_shots_only_ever_prune_and_end_at_the_keep_ratio(splits, method):
    scope = "layer" if method == "grasp" else "global"  # which would empty a layer so small
    recipe = recipe_of(method=method, scope=scope, shots=3, epoch=3)
    net = build_network(recipe, splits)
    total = sum(w.numel() for w in pabzip.init.seeded_parameters(net).values())
    before = None
    for planned in planned_searches(recipe):
        masks = search_masks(net, recipe, splits, planned)
        assert sum(counts(masks).values()) == pytest.approx(planned.of(0.4) * total, abs=3)
        if before is not None:
            assert all(not bool((masks[name] & ~before[name]).any()) for name in masks)
        before = masks
        with torch.no_grad():
            for weight in pabzip.init.seeded_parameters(net).values():
                weight.neg_().add_(0.0)  # signs flip between the shots, and +0.0 stays
    if method == "random":
        whole = search_masks(build_network(recipe, splits), recipe, splits)
        assert all(torch.equal(masks[name], whole[name]) for name in masks)


def test_ratios_by_name_and_the_keep_ratio_for_the_rest(splits):
    recipe = recipe_of(method="layerwise-random")
    weights = pabzip.init.seeded_parameters(build_network(recipe, splits))
    first, *rest = weights
    recipe = recipe_of(method="layerwise-random", ratios={first: 0.9})
    masks = search_masks(build_network(recipe, splits), recipe, splits)
    assert counts(masks) == {
        first: survivors(0.9, weights[first].numel()),
        **{name: survivors(0.4, weights[name].numel()) for name in rest},
    }
    half_way = search_masks(build_network(recipe, splits), recipe, splits, PlannedSearch(0, 0.5))
    assert counts(half_way)[first] == survivors(0.95, weights[first].numel())
    others = recipe.replace(keep_ratio=1.0)
    for share, kept in ((0.5, 0.95), (1.0, 0.9)):
        masks = search_masks(build_network(others, splits), others, splits, PlannedSearch(0, share))
        assert counts(masks) == {
            first: survivors(kept, weights[first].numel()),
            **{name: weights[name].numel() for name in rest},
        }


def test_smart_ratios_are_as_the_recipe_says(splits):
    recipe = recipe_of(method="smart-ratio", ratio_form="vgg", linear_keep_ratio=0.2)
    net, other = build_network(recipe, splits), build_network(recipe, splits)
    expected = search.smart_ratio(other, 0.4, ratio_form="vgg", linear_keep_ratio=0.2)
    found = search_masks(net, recipe, splits)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert int(found["fc1.weight"].sum()) == int(0.2 * found["fc1.weight"].numel())


@pytest.mark.parametrize("method", ["synflow", "snip", "random", "layerwise-random"])
def test_what_a_search_skips_is_neither_pruned_nor_counted(splits, method):
    recipe = recipe_of(method=method, skip=("features.0", "fc1.weight"))
    net, other = build_network(recipe, splits), build_network(recipe, splits)
    weights = pabzip.init.seeded_parameters(net)
    searched = [name for name in weights if name not in ("features.0.weight", "fc1.weight")]
    masks = search_masks(net, recipe, splits)
    assert list(masks) == list(weights)
    assert all(bool(masks[name].all()) for name in weights if name not in searched)
    total = sum(weights[name].numel() for name in searched)
    assert sum(int(masks[name].sum()) for name in searched) == pytest.approx(0.4 * total, abs=2)
    for name, mask in masks.items():
        assert torch.equal(weights[name] != 0, mask)
    if method == "random":
        expected = search.random(other, 0.4, skip=["features.0", "fc1"])
        assert all(torch.equal(masks[name], expected[name]) for name in searched)


def test_names_that_cannot_be_skipped(splits):
    recipe = recipe_of(skip=("conv9",))
    with pytest.raises(SeedError, match=r"skip= names 'conv9', expected a seeded weight or a"):
        search_masks(build_network(recipe, splits), recipe, splits)
    ratios = {"fc1.weight": 0.5}
    recipe = recipe_of(method="layerwise-random", skip=("fc1",), ratios=ratios)
    with pytest.raises(RecipeError, match=r"search\.ratios: expected names .* found 'fc1.weight'"):
        search_masks(build_network(recipe, splits), recipe, splits)
    assert recipe_of(skip=["fc1"]) == recipe_of(skip="fc1") == recipe_of(skip=("fc1",))
    for wrong in (3, [3], [""]):
        with pytest.raises(RecipeError, match=r"search\.skip: expected names of layers or weights"):
            recipe_of(skip=wrong)


def test_ratios_of_no_weight(splits):
    recipe = recipe_of(method="layerwise-random", ratios={"conv3.weight": 0.5})
    problem = (
        r"search\.ratios: expected names of the weights that conv2 draws from its seed, found "
        r"'conv3\.weight'; did you mean (\S+)\?"
    )
    net = build_network(recipe, splits)
    with pytest.raises(RecipeError, match=problem) as caught:
        search_masks(net, recipe, splits)
    assert re.search(problem, str(caught.value))[1] in pabzip.init.seeded_parameters(net)


@pytest.mark.parametrize("method", ["synflow", "snip", "grasp"])
def test_predictive_gradients_play_no_part(splits, method):
    recipe = recipe_of(method=method)
    plain, predictive = build_network(recipe, splits), build_network(recipe, splits)
    expected = search_masks(plain, recipe, splits)
    handle = apply_psg(predictive)
    found = search_masks(predictive.train(), recipe, splits)
    handle.remove()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_rounds_are_the_published_ones_unless_said():
    assert [SearchRecipe(method=name).rounds for name in ("synflow", "snip", "grasp")] == [
        100,
        1,
        1,
    ]
    assert SearchRecipe(method="grasp", iterations=7).rounds == 7
