"""``pabzip train --import``: a package of the user's that registers what is trained, and how."""

from __future__ import annotations

import json

import pytest
import torch

MINE = '''
import torch

from pabzip.data import Images, Splits
from pabzip.init import seeded_parameters
from pabzip.registry import register_dataset, register_method, register_search
from pabzip.search import apply_masks
from pabzip.train.methods import MilestoneDecay
from pabzip.train.settings import Section, setting


@register_dataset("stripes", classes=2, shape=(1, 8, 8))
def stripes(name, *, root=None, download=False):
    labels = torch.arange(40) % 2
    images = torch.zeros(40, 1, 8, 8, dtype=torch.uint8)
    images[labels == 0, :, ::2] = 255
    images[labels == 1, :, :, ::2] = 255
    part = Images(images, labels, 255, (0.5,), (0.5,))
    return Splits(name, part, part, 2)


@register_search("every-second", needs_data=False, rounds=1)
def every_second(net, keep_ratio, **others):
    masks = {
        name: (torch.arange(weight.numel()) % 2 == 0).view(weight.shape)
        for name, weight in seeded_parameters(net).items()
    }
    apply_masks(net, masks)
    return masks


class SlowRecipe(Section, table="slow"):
    """Settings of the method `slow`."""

    lr: float = setting(0.5, "Learning rate of the method slow.", ge=0)


@register_method("slow", uses=("slow",), seeded=False)
def slow(net, recipe):
    optimizer = torch.optim.SGD(seeded_parameters(net).values(), recipe.section(SlowRecipe).lr)
    return optimizer, MilestoneDecay(optimizer, recipe.sgd.milestones, recipe.sgd.decay)
'''
RUN = (
    "train", "--import", "mine", "--data", "stripes", "--set", "search.method=every-second",
    "--method", "slow", "--arch", "lenet-300-100", "--set", "arch_options.width=12",
    "--epochs", "1", "--device", "cpu", "--json",
)  # fmt: skip


@pytest.fixture
def ask(tmp_path, monkeypatch, spawn):
    """Run a command as a process of its own, in a folder that holds the package."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments, code=0):
        done = spawn(*arguments, cwd=tmp_path)
        assert done.returncode == code, done.stderr.decode()
        return json.loads(done.stdout) if code == 0 else done.stderr.decode()

    return invoke


def test_a_package_brings_data_a_search_and_a_method_with_settings(ask):
    found = ask(*RUN, "--set", "slow.lr=0.25")
    assert (found["data"], found["method"], found["epochs"]) == ("stripes", "slow", 1)
    assert found["survivors"] == -(-found["weights"] // 2)
    content = torch.load("model.pt", weights_only=True)
    assert content["recipe"]["slow"] == {"lr": 0.25}
    weight = content["state_dict"]["fc1.weight"].flatten()
    assert weight[::2].all()
    assert not weight[1::2].any()
    tested = ask("eval", "model.pt", "--import", "mine", "--device", "cpu", "--json")
    assert tested["accuracy"] == found["test_accuracy"]
    ask(*RUN, "--set", "slow.lr=0", "-o", "still.pt")
    still = torch.load("still.pt", weights_only=True)["state_dict"]["fc1.weight"].flatten()
    assert not torch.equal(weight, still)


def test_its_settings_are_listed_and_checked_as_pabzips_own(ask):
    found = {entry["name"]: entry for entry in ask(*RUN, "--list-settings")["settings"]}
    assert found["slow.lr"]["value"] == 0.5
    assert found["slow.lr"]["expected"] == "a number at least 0"
    assert "every-second" in found["search.method"]["choices"]
    assert "did you mean slow.lr?" in ask(*RUN, "--set", "slow.rl=1", code=2)
    assert "slow.lr: expected a number at least 0, found -1" in ask(
        *RUN, "--set", "slow.lr=-1", code=2
    )


def test_its_errors_are_told(ask, tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    message = ask("train", "--import", "broken", code=2)
    assert "--import broken: expected a package that can be imported, found Zero" in message
