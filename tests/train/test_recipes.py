"""Recipes: validation, TOML, flags over TOML, and the way to plain values and back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pabzip.errors import RecipeError
from pabzip.registry import METHODS
from pabzip.train import (
    BopRecipe,
    LatentRecipe,
    PsgRecipe,
    Recipe,
    SearchRecipe,
    SgdRecipe,
    SignSgdRecipe,
    default_recipe,
    from_dict,
    merge,
    method_of,
    read_recipe,
    to_dict,
)
from pabzip.train.config import comparable
from pabzip.train.settings import Section, setting


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "resnet19"}, r"arch: expected one of lenet-300-100, .*resnet50.*'resnet19'"),
        ({"arch": "nets:"}, r"arch: .*found 'nets:'"),
        ({"arch_options": {"width": [1]}}, r"arch_options\.width: .*found \[1\]"),
        ({"arch_options": 3}, r"arch_options: expected a table of options, found 3"),
        ({"data": ""}, r"data: expected .*found ''"),
        ({"augment": 1}, r"augment: expected true or false, found 1"),
        ({"seed": -1}, r"seed: expected a whole number from 0 to 18446744073709551615, found -1"),
        ({"seed": True}, r"seed: .*found True"),
        ({"seed": 2**64}, r"seed: .*found 18446744073709551616"),
        ({"scheme": "he"}, r"scheme: expected one of kaiming_normal, .*found 'he'"),
        ({"classifier": "none"}, r"classifier: expected one of dense, seeded, found 'none'"),
        ({"method": "bop"}, r"method: expected one of pab-bop, .*-short, .*, found 'bop'"),
        ({"drop_ratio": 1}, r"drop_ratio: expected a number at least 0 and below 1, found 1"),
        ({"precision": "int8"}, r"precision: expected one of float32, .*found 'int8'"),
        ({"channels_last": 1}, r"channels_last: expected true or false, found 1"),
        ({"keep_ratio": 0}, r"keep_ratio: expected a number above 0 and at most 1, found 0"),
        ({"keep_ratio": 1.5}, r"keep_ratio: .*at most 1, found 1\.5"),
        ({"keep_ratio": float("nan")}, r"keep_ratio: .*found nan"),
        ({"epochs": 0}, r"epochs: expected a whole number of 1 or more, found 0"),
        ({"epochs": 2.0}, r"epochs: expected a whole number of 1 or more, found 2\.0"),
        ({"batch_size": 0}, r"batch_size: .*found 0"),
        ({"device": "tpu"}, r"device: expected auto, cpu, cuda or cuda:<number>, found 'tpu'"),
        ({"search": {"iterations": 0}}, r"search\.iterations: .*found 0"),
        ({"search": {"method": "rare"}}, r"search\.method: expected one of .*found 'rare'"),
        ({"search": {"schedule": "cosine"}}, r"search\.schedule: expected one of exponential"),
        ({"search": {"scope": "row"}}, r"search\.scope: expected one of global, layer"),
        ({"search": {"precision": "half"}}, r"search\.precision: expected one of float64, fl"),
        ({"search": {"samples": 0}}, r"search\.samples: .*found 0"),
        ({"search": {"epoch": -1}}, r"search\.epoch: .*found -1"),
        ({"search": {"epoch": 20}}, r"search\.epoch: expected less than the 20 epochs.*found 20"),
        ({"search": {"epoch": 2, "shots": 3}}, r"search\.shots: expected at most 2.*found 3"),
        ({"search": {"ratios": 3}}, r"search\.ratios: expected a table of numbers.*found 3"),
        ({"search": {"ratios": {"a": 0.1}}}, r"search\.ratios: expected none for .*'synflow'"),
        ({"search": {"method": "layerwise-random", "ratios": {"a": 0}}},
         r"search\.ratios\.a: expected a number above 0 and at most 1, found 0"),
        ({"search": {"method": "layerwise-random", "ratios": {"a": {"weight": 0.1}}}},
         r"search\.ratios\.a: expected a number, found a table; quote a name that has dots"),
        ({"latent": {"start": 0}}, r"latent\.start: expected a number at least 5"),
        ({"latent": {"momentum": 1}}, r"latent\.momentum: .*below 1, found 1"),
        ({"signsgd": {"lr": -1}}, r"signsgd\.lr: .*found -1"),
        ({"bop": {"flip_cost": -1}}, r"bop\.flip_cost: .*at least 0, found -1"),
        ({"bop": {"adaptivity_rate": 0}}, r"bop\.adaptivity_rate: .*above 0 and at most 1"),
        ({"bop": {"threshold": float("inf")}}, r"bop\.threshold: .*at least 0, found inf"),
        ({"bop": {"threshold": 10**400}}, r"bop\.threshold: .*found 1000"),
        ({"bop": {"start": "one"}}, r"bop\.start: expected one of first-gradient, zero"),
        ({"bop": 1}, r"bop: expected a table, found 1"),
        ({"psg": {"weight_bits": 33}}, r"psg\.weight_bits: .*from 2 to 32, found 33"),
        ({"psg": {"behavior": "keep"}}, r"psg\.behavior: expected one of all, correct, remove"),
        ({"sgd": {"momentum": 1}}, r"sgd\.momentum: .*at least 0 and below 1, found 1"),
        ({"sgd": {"milestones": [9, 5]}}, r"sgd\.milestones: expected increasing .*found \[9, 5\]"),
        ({"sgd": {"milestones": [0]}}, r"sgd\.milestones: .*found \[0\]"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_with_its_key_and_what_is_valid(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        merge(Recipe(), changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 3}, r"^epoch: expected the name of a setting.*did you mean epochs\?"),
        ({"bop": {"treshold": 1}}, r"bop\.treshold: .*did you mean bop\.threshold\?"),
        ({"iterations": 3}, r"iterations: .*did you mean search\.iterations\?"),
        ({"psg": {"bits": 8}}, r"psg\.bits: .*did you mean psg\.\w*_bits\?"),
        ({"zzz": 8}, r"zzz: .*did you mean \w+"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_valid_name(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        merge(Recipe(), changes)


def test_merge_replaces_level_by_level_and_leaves_the_rest() -> None:
    recipe = Recipe(epochs=3, bop=BopRecipe(threshold=0.5))
    merged = merge(recipe, {"seed": None, "bop": {"adaptivity_rate": 1}, "sgd": {"milestones": []}})
    assert merged.epochs == 3
    assert merged.bop == BopRecipe(adaptivity_rate=1.0, threshold=0.5)
    assert isinstance(merged.bop.adaptivity_rate, float)
    assert merged.sgd.milestones == ()
    assert recipe.bop.adaptivity_rate == 1e-3


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text("epochs = 7\nkeep_ratio = 1\n[bop]\nthreshold = 2e-5\n[arch_options]\nwidth=30")
    recipe = read_recipe(file, {"epochs": 9, "bop": {"start": "zero"}})
    default = default_recipe()
    assert (recipe.epochs, recipe.keep_ratio, recipe.arch_options) == (9, 1.0, {"width": 30})
    assert (recipe.bop.threshold, recipe.bop.start) == (2e-5, "zero")
    assert recipe.bop.adaptivity_rate == default.bop.adaptivity_rate
    assert recipe.sgd == default.sgd


def test_values_of_file_and_flags_are_checked_together(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text("[search]\nepoch = 50\nshots = 5\n")
    recipe = read_recipe(file, {"epochs": 200, "search": {"iterations": 3}})
    assert (recipe.search.epoch, recipe.search.shots, recipe.search.iterations) == (50, 5, 3)
    with pytest.raises(RecipeError, match=r"^epochs: .*found 0"):
        read_recipe(file, {"epochs": 0})


def test_ratios_come_from_a_table_of_quoted_names(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('[search]\nmethod = "layerwise-random"\n[search.ratios]\n"fc.weight" = 0.25\n')
    assert read_recipe(file).search.ratios == {"fc.weight": 0.25}


def test_what_each_method_is() -> None:
    methods = {name: method_of(Recipe(method=name)) for name in METHODS}
    learned = [methods.pop(name) for name in list(methods) if methods[name].scores]
    assert not any(method.masked or method.psg or method.short for method in learned)
    assert [name for name, method in methods.items() if method.seeded] == [
        "pab-bop", "pab-bop-psg", "pab-latent", "pab-latent-psg"
    ]  # fmt: skip
    assert [name for name, method in methods.items() if not method.masked] == [
        "dense-sgd", "dense-sgd-short"
    ]  # fmt: skip
    assert [name for name, method in methods.items() if method.psg] == [
        "pab-bop-psg", "pab-latent-psg"
    ]  # fmt: skip


def test_defaults_follow_architecture_and_data() -> None:
    assert read_recipe(None) == default_recipe()
    assert default_recipe().data == "digits"
    paper = read_recipe(None, {"data": "cifar10"})
    assert (paper.arch, paper.epochs, paper.augment) == ("resnet18", 200, True)
    assert (paper.bop, paper.sgd, paper.psg) == (BopRecipe(), SgdRecipe(), PsgRecipe())
    assert default_recipe(method="sgd").method == "sgd"
    assert default_recipe(method="pab-latent").sgd.milestones == (16, 24, 32)
    assert default_recipe(None, "cifar10", "signsgd").signsgd == SignSgdRecipe()
    assert default_recipe("conv4", "cifar100").arch == "conv4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = \nseed = 1", r"recipe\.toml: expected a TOML file: .*line 1"),
        ("epochs = 0", r"recipe\.toml: epochs: .*found 0"),
        ("[search]\nepoch = 40", r"recipe\.toml: search\.epoch: expected less than the 40"),
        ("[bopp]\nstart = 1", r"recipe\.toml: bopp: .*did you mean bop"),
        ("arch = 3", r"arch: expected a text, found 3"),
        ('arch = "os:system"', r"recipe\.toml: arch: .*nothing is imported.*--arch"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=message):
        read_recipe(file)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="expected a TOML file"):
        read_recipe(file)


def test_an_own_architecture_comes_from_the_caller_alone() -> None:
    recipe = read_recipe(None, {"arch": "mynets:Tiny"})
    assert recipe.own_architecture
    with pytest.raises(RecipeError, match="nothing is imported"):
        from_dict(to_dict(recipe))
    assert from_dict(to_dict(recipe), allow_import=True) == recipe


unit = st.floats(1e-6, 1.0)
recipes = st.builds(
    Recipe,
    arch=st.sampled_from(["lenet-300-100", "resnet50"]),
    arch_options=st.dictionaries(st.sampled_from(["width", "num_classes"]), st.integers(1, 99)),
    data_root=st.none() | st.just("somewhere"),
    augment=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
    keep_ratio=unit,
    epochs=st.integers(1, 300),
    method=st.sampled_from(METHODS.names),
    drop_ratio=st.floats(0, 0.9),
    channels_last=st.booleans(),
    search=st.builds(
        SearchRecipe,
        method=st.just("layerwise-random"),
        iterations=st.integers(1, 200),
        ratios=st.dictionaries(st.text(min_size=1), unit, max_size=3),
    ),
    latent=st.builds(LatentRecipe, lr=st.floats(0, 1)),
    signsgd=st.builds(SignSgdRecipe, lr=st.floats(0, 1)),
    bop=st.builds(
        BopRecipe,
        adaptivity_rate=unit,
        threshold=st.floats(0, 1),
        start=st.sampled_from(["zero", "first-gradient"]),
    ),
    psg=st.builds(PsgRecipe, input_bits=st.integers(2, 32), threshold=st.floats(0, 1)),
    sgd=st.builds(SgdRecipe, milestones=st.sets(st.integers(1, 99)).map(sorted).map(tuple)),
)


@given(recipes)
def test_plain_values_survive_json_and_give_the_recipe_back(recipe: Recipe) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(recipe)))) == recipe


def test_reading_a_recipe_does_not_load_torch() -> None:
    code = "import sys, pabzip.train as t; t.read_recipe(None); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_can_be_had_from_the_package() -> None:
    import pabzip.train

    for name in pabzip.train.__all__:
        assert getattr(pabzip.train, name).__name__ == name


def test_options_on_the_command_line_are_laid_over_the_files(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text('arch = "wideresnet28"\n[arch_options]\nlate_stride = true\nwiden = 4\n')
    given = {"arch_options": {"widen": 2}}
    assert read_recipe(file, given).arch_options == {"late_stride": True, "widen": 2}
    other = read_recipe(file, {"arch": "conv2", "arch_options": {"width": 8}})
    assert (other.arch, other.arch_options) == ("conv2", {"width": 8})


def test_a_dense_method_is_not_bound_by_the_search():
    recipe = {"method": "dense-sgd", "epochs": 5, "search": {"epoch": 50, "shots": 2}}
    assert read_recipe(None, recipe).epochs == 5


def test_a_recipe_is_checked_however_it_is_made():
    with pytest.raises(RecipeError, match=r"^epochs: expected a whole number of 1 or more"):
        Recipe(epochs=0)
    with pytest.raises(RecipeError, match=r"^bop\.threshold: .* at least 0, found -1$"):
        BopRecipe(threshold=-1)
    with pytest.raises(RecipeError, match=r"^seed: .*found 'x'"):
        Recipe().replace(seed="x")
    with pytest.raises(RecipeError, match=r"^epoch: .*did you mean epochs\?"):
        Recipe(epoch=3)
    with pytest.raises(RecipeError, match=r"^bop\.rate: .*did you mean bop\.\w+\?"):
        BopRecipe(rate=3)
    with pytest.raises(ValueError, match="frozen"):
        Recipe().epochs = 3
    assert Recipe().replace(epochs=3) == Recipe(epochs=3) != Recipe()


@pytest.mark.parametrize("table", ["epochs", "arch_options", "section", "replace"])
def test_a_table_cannot_be_called_what_recipes_use_themselves(table, monkeypatch):
    monkeypatch.setattr(Section, "sections", dict(Section.sections))

    class Mine(Section, table=table):
        rate: float = setting(0.5, "A rate.", ge=0)

    message = rf"^{table}: expected a table of settings with a name that is free, found .*Mine with"
    with pytest.raises(RecipeError, match=message):
        Recipe()


def test_two_recipes_are_compared_by_what_they_do():
    there = Recipe(device="cuda", data_root="x", search=SearchRecipe(method="snip"))
    here = Recipe(device="cpu", search=SearchRecipe(method="snip", iterations=1))
    assert comparable(there) == comparable(here) == comparable(to_dict(there))
    other = comparable(here.replace(bop=BopRecipe(threshold=1.0)))
    assert {key for key, value in other.items() if comparable(here)[key] != value} == {
        "bop.threshold"
    }


ROWS = """
epochs = 3
[bop]
threshold = 0.5
[rows.short]
about = "one epoch"
epochs = 1
bop.start = "zero"
[rows."keep-0.5"]
keep_ratio = 0.5
"""


def test_a_file_may_hold_many_runs(tmp_path):
    file = tmp_path / "runs.toml"
    file.write_text(ROWS)
    short = read_recipe(f"{file}#short", {"seed": 4})
    assert (short.epochs, short.seed, short.keep_ratio) == (1, 4, 0.1)
    assert (short.bop.threshold, short.bop.start) == (0.5, "zero")
    assert read_recipe(f"{file}#keep-0.5").keep_ratio == 0.5
    with pytest.raises(RecipeError, match=r"name of a row \(short, keep-0\.5\), found none; write"):
        read_recipe(file)
    with pytest.raises(RecipeError, match=r"runs\.toml: expected the name of a row.*found 'long'"):
        read_recipe(f"{file}#long")
    file.write_text("epochs = 3")
    with pytest.raises(RecipeError, match=r"found a recipe of one run; leave out #short"):
        read_recipe(f"{file}#short")
    file.write_text('[rows.evil]\narch = "os:system"')
    with pytest.raises(RecipeError, match=r"runs\.toml#evil: arch: .*nothing is imported"):
        read_recipe(f"{file}#evil")
