from __future__ import annotations

import json

import pytest
import torch

from pabzip.cli._settings import given
from pabzip.train.config import Recipe, SearchRecipe, all_settings, comparable, unused

TINY = (
    "--set", "arch_options.width=12", "--epochs", "1", "--set", "search.iterations=3",
    "--device", "cpu",
)  # fmt: skip
KEYS = {
    "arch", "data", "method", "keep_ratio", "epochs", "test_accuracy", "output", "seconds",
    "bitops",
    "layer_bitops",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_is_short_and_names_what_is_set_often(run):
    lines = run("train", "--help").stdout.splitlines()
    assert len(lines) <= 75
    options = lines[lines.index("Settings:") :]  # the text above names some, too
    flags = [line.split()[0].rstrip(",") for line in options if line.startswith("  -")]
    assert len(flags) <= 28
    assert set(flags) >= {"--log", "--epochs", "--method", "--set", "--list-settings", "--import"}


def test_list_settings_names_every_setting(folder, run):
    result = run("train", "--list-settings", "--data", "cifar10", "--set", "bop.start=zero",
                 "--json")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = {entry["name"]: entry for entry in json.loads(result.stdout)["settings"]}
    assert list(found) == [setting.key for setting in all_settings()]
    assert set(comparable(Recipe())) <= set(found)
    assert all(entry["help"] and entry["expected"] for entry in found.values())
    assert (found["epochs"]["value"], found["bop.start"]["value"]) == (200, "zero")
    assert (found["seed"]["flag"], found["sgd.lr"]["flag"]) == ("--seed", None)
    assert found["bop.start"]["choices"] == ["first-gradient", "zero"]
    text = run("train", "--list-settings").stdout
    assert all(name in text for name in found)
    assert "at least 0 and below 1" in text
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "keys", "idle"),
    [
        ("pab-bop", ["bop.flip_cost", "search.scope", "epochs"], []),
        ("pab-bop", ["psg.input_bits", "latent.momentum", "sgd.lr"],
         ["psg.input_bits", "latent.momentum"]),
        ("sgd", ["bop.flip_cost", "keep_ratio", "sgd.momentum"], ["bop.flip_cost"]),
        ("dense-sgd", ["keep_ratio", "search.scope", "seed"], ["keep_ratio", "search.scope"]),
        ("dense-sgd-short", ["keep_ratio", "psg.input_bits"], []),
    ],
)  # fmt: skip
def test_what_a_method_has_no_use_for(method, keys, idle):
    found = unused(Recipe(method=method), keys)
    assert found == dict.fromkeys(idle, f"method {method}")


SMART = ("ratio_form", "linear_keep_ratio")


@pytest.mark.parametrize(
    ("search", "idle"),
    [
        ("synflow", ["samples", "batch_norm", "ratios", *SMART]),
        ("snip", ["precision", "ratios", *SMART]),
        ("random", ["samples", "batch_norm", "precision", "ratios", *SMART]),
        ("layerwise-random", ["samples", "batch_norm", "precision", *SMART]),
        ("smart-ratio", ["samples", "batch_norm", "precision", "ratios"]),
    ],
)
def test_what_a_search_has_no_use_for(search, idle):
    keys = [f"search.{name}" for name in SearchRecipe.model_fields]
    found = unused(Recipe(search=SearchRecipe(method=search)), keys)
    names = {f"search.{name}" for name in idle}
    assert found == dict.fromkeys(names, f"search {search}")
    dense = Recipe(method="dense-sgd", search=SearchRecipe(method=search))
    assert unused(dense, keys) == dict.fromkeys(keys, "method dense-sgd")


def test_a_setting_without_use_is_told(folder, run):
    idle = ("--set", "bop.threshold=1", "--set", "latent.start=1")
    result = run("train", *TINY, "--method", "sgd", *idle)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == (
        "pabzip: bop.threshold: method sgd has no use for it\n"
        "pabzip: latent.start: method sgd has no use for it\n"
    )
    result = run("train", *TINY, "--set", "search.samples=7", "--force")
    assert result.stderr == "pabzip: search.samples: search synflow has no use for it\n"


def test_assignments_are_toml_with_bare_words_as_text():
    typed = {"setting_epochs": "3", "setting_seed": None, "setting_data": "2024"}
    assignments = [
        "bop.threshold=0", "bop.start=zero", 'scheme="xavier_normal"', "augment=true",
        "sgd.milestones=[80, 120]", "search.ratios.fc.weight=.5", 'search.ratios."a.b"=1',
        "arch_options.width=32", "bop.threshold=1e-3",
    ]  # fmt: skip
    table, keys = given(typed, assignments)
    assert table == {
        "epochs": 3,
        "data": "2024",
        "bop": {"threshold": 1e-3, "start": "zero"},
        "scheme": "xavier_normal",
        "augment": True,
        "sgd": {"milestones": [80, 120]},
        "search": {"ratios": {"fc.weight": 0.5, "a.b": 1}},
        "arch_options": {"width": 32},
    }
    assert keys == ["data", "epochs", "bop.threshold", "bop.start", "scheme", "augment",
                    "sgd.milestones", "search.ratios", "arch_options"]  # fmt: skip
    assert given(dict.fromkeys(typed), []) == ({}, [])


def test_train_writes_model_pt_and_prints_the_stable_keys(folder, run):
    result = run("train", *TINY, "--json", "--log", "run.jsonl")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert set(found) >= KEYS
    assert found["output"] == "model.pt"
    assert (found["epochs"], found["keep_ratio"], found["data"]) == (1, 0.1, "digits")
    assert {path.name for path in folder.iterdir()} == {"model.pt", "run.jsonl"}
    events = [json.loads(line)["event"] for line in (folder / "run.jsonl").read_text().splitlines()]
    assert events == ["start", "bitops", "epoch", "result"]
    content = torch.load("model.pt", weights_only=True)
    assert content["results"]["test_accuracy"] == found["test_accuracy"]
    assert result.stderr == ""


def test_train_for_people(folder, run):
    result = run("train", *TINY, "-o", "mine.pt", "-v")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("mine.pt: test accuracy ")
    assert '"epochs": 1' in result.stderr


def test_flags_win_over_the_recipe_and_the_rest_stays(folder, run):
    (folder / "mine.toml").write_text(
        "keep_ratio = 0.5\nepochs = 7\nseed = 3\n[arch_options]\nwidth = 12\n"
        "[search]\niterations = 3\n"
    )
    result = run("train", "--recipe", "mine.toml", "--epochs", "1", "--json", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["keep_ratio"], found["epochs"], found["seed"]) == (0.5, 1, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--keep-ratio", "2"), "keep_ratio: expected a number above 0 and at most 1, found 2"),
        (("--epochs", "0"), "epochs: expected a whole number of 1 or more, found 0"),
        (("--epochs", "ten"), "epochs: expected a whole number of 1 or more, found 'ten'"),
        (("--seed", "-1"), "seed: expected a whole number from 0 to"),
        (("--arch", "resnet19"), "resnet18"),
        (("--method", "bop"), "method: expected one of pab-bop, "),
        (("--set", "sgd.lr=nan"), "sgd.lr: expected a number at least 0, found nan"),
        (("--set", "scheme=lecun"), "kaiming_normal"),
        (("--set", "sgd.milestones=one"), "such as [80, 120], found 'one'"),
        (("--set", "sgd.milestones=[9,3]"), "such as [80, 120], found [9, 3]"),
        (("--set", "search.ratios=fc.weight"), "expected a table of numbers by name"),
        (("--set", "arch_options.width=[1]"), "arch_options.width: expected a text, a number"),
        (("--set", "bop.treshold=1"), "bop.treshold: expected the name of a setting, found an "
         "unknown one; did you mean bop.threshold?"),
        (("--set", "epochs"), "--set: expected NAME=VALUE, such as bop.threshold=1e-6"),
        (("--epochs", "3", "--set", "epochs=4"), "epochs is given twice, by --epochs and by --set"),
        (("--import", "no_such_package"), "found none called 'no_such_package'"),
        (("-o", "-"), "name them"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_usage_errors(folder, run, arguments, message):
    result = run("train", *arguments)
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert list(folder.iterdir()) == []


def test_a_recipe_that_is_none_names_the_file(folder, run):
    (folder / "bad.toml").write_text("epoch = 3\n")
    result = run("train", "--recipe", "bad.toml")
    assert result.exit_code == 2
    assert "bad.toml" in result.stderr
    assert "epochs" in result.stderr


def test_a_recipe_cannot_import_code(folder, run):
    (folder / "evil.py").write_text("open('owned', 'w')\n")
    (folder / "evil.toml").write_text('arch = "evil:Net"\n')
    result = run("train", "--recipe", "evil.toml")
    assert result.exit_code == 2
    assert not (folder / "owned").exists()


def test_the_recipe_is_never_the_output(folder, run):
    (folder / "mine.toml").write_text("epochs = 1\n")
    result = run("train", "--recipe", "mine.toml", "-o", "mine.toml", "--force")
    assert result.exit_code == 1
    assert "is the input mine.toml itself" in result.stderr


def test_the_log_is_not_the_output(folder, run):
    result = run("train", "-o", "one.pt", "--log", "one.pt")
    assert result.exit_code == 1
    assert "one.pt" in result.stderr


def test_a_loss_that_is_not_finite_exits_4(folder, run, monkeypatch):
    (folder / "endless.py").write_text(
        "from torch import nn\n"
        "class Endless(nn.Linear):\n"
        "    def forward(self, images):\n"
        "        return super().forward(images.flatten(1)) * float('inf')\n"
        "def network():\n"
        "    return Endless(64, 10)\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    result = run("train", "--arch", "endless:network", "--method", "dense-sgd", "--epochs", "1")
    assert result.exit_code == 4
    assert result.stderr.startswith("pabzip: error: epoch 1, step ")
    assert "expected a finite loss and finite gradients, found a loss of nan" in result.stderr
    assert not (folder / "model.pt").exists()


def test_missing_data_is_named(folder, run):
    result = run("train", "--data", "cifar10", "--data-root", "nowhere", "--epochs", "1")
    assert result.exit_code == 1
    assert "cifar10" in result.stderr
    assert "--download" in result.stderr
    assert list(folder.iterdir()) == []


def test_list_recipes_names_every_published_one(folder, run):
    result = run("train", "--list-recipes", "--json")
    assert result.exit_code == 0, result.stderr
    names = [entry["name"] for entry in json.loads(result.stdout)["recipes"]]
    assert "table1-resnet18-pab-bop-psg" in names
    text = run("train", "--list-recipes").stdout
    assert all(name in text for name in names)
    assert "The paper: 92.71 %" in text
    assert list(folder.iterdir()) == []


def test_an_unknown_recipe_name_is_refused_with_the_nearest(folder, run):
    result = run("train", "--recipe", "table1-resnet18-pab-bop-pgs")
    assert result.exit_code == 2
    assert "expected a TOML file or a recipe that comes with pabzip" in result.stderr
    assert "table1-resnet18-pab-bop-psg" in result.stderr
