from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from pabzip.cli.train import FLAGS, overrides, unheeded
from pabzip.train.config import Recipe, merge

TINY = ("--arch-option", "width=12", "--epochs", "1", "--search-iterations", "3", "--device", "cpu")
KEYS = {
    "arch", "data", "method", "keep_ratio", "epochs", "test_accuracy", "output", "seconds",
    "bitops",
    "layer_bitops",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dotted_keys(part, prefix=""):
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if dataclasses.is_dataclass(value):
            yield from dotted_keys(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def test_every_value_of_a_recipe_has_a_flag():
    assert {flag.key for flag in FLAGS} | {"arch", "arch_options"} == set(dotted_keys(Recipe()))


@pytest.mark.parametrize(
    ("method", "flags", "unused"),
    [
        ("pab-bop", {"bop.flip_cost": 0.1, "search.scope": "layer", "epochs": 2}, []),
        ("pab-bop", {"psg.input_bits": 4, "latent.momentum": 0.5}, ["psg", "latent"]),
        ("sgd", {"bop.flip_cost": 0.1, "keep_ratio": 0.5, "sgd.momentum": 0.5}, ["bop"]),
        ("dense-sgd", {"keep_ratio": 0.5, "search.scope": "layer"}, ["keep_ratio", "search"]),
        ("dense-sgd-short", {"keep_ratio": 0.5, "psg.input_bits": 4}, []),
    ],
)
def test_flags_that_a_method_has_no_use_for_are_told(method, flags, unused):
    by_key = {flag.key: flag for flag in FLAGS}
    given = {by_key[key].parameter: value for key, value in flags.items()}
    found = unheeded(given, Recipe(method=method))
    wanted = [by_key[key].name for key in flags if key.split(".")[0] in unused]
    assert sorted(found) == sorted(wanted)


def test_flags_that_are_not_given_change_nothing():
    assert overrides(dict.fromkeys([flag.parameter for flag in FLAGS])) == {}


def test_flags_nest_as_the_recipe_does():
    values = dict.fromkeys([flag.parameter for flag in FLAGS])
    values |= {"recipe_epochs": 3, "recipe_bop__threshold": 0.0, "recipe_augment": False}
    table = overrides(values)
    assert table == {"epochs": 3, "bop": {"threshold": 0.0}, "augment": False}
    assert merge(Recipe(epochs=9, augment=True), table).bop.threshold == 0.0


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
        (("--keep-ratio", "2"), "keep_ratio"),
        (("--epochs", "0"), "epochs"),
        (("--seed", "-1"), "seed"),
        (("--arch", "resnet19"), "resnet18"),
        (("--scheme", "lecun"), "kaiming_normal"),
        (("--milestones", "one"), "80,120"),
        (("--search-ratios", "fc.weight"), "conv1.weight=0.5"),
        (("--search-ratios", "a=1,a=1"), "different names"),
        (("--arch-option", "width"), "KEY=VALUE"),
        (("--arch-option", "width=1", "--arch-option", "width=2"), "twice"),
        (("-o", "-"), "name them"),
        (("--learning-rate", "nan"), "learning_rate"),
    ],
)
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
