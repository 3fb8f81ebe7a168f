"""The user's own architecture by ``module:callable``."""

from __future__ import annotations

import sys

import pytest
import torch

from pabzip import models
from pabzip.errors import ArchitectureError

SOURCE = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self, num_classes=10, width=2):
        super().__init__()
        self.fc = nn.Linear(width, num_classes)

class Zoo:
    @staticmethod
    def tiny():
        return Tiny(3)

def ready():
    from pabzip import models
    return models.build("lenet-300-100", width=3, image_size=2)

def number():
    return 3

def broken():
    raise ValueError("the user's mistake")

VALUE = 5
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder that holds modules of the user's, gone from Python afterwards."""
    (tmp_path / "users_nets.py").write_text(SOURCE)
    (tmp_path / "users_broken.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "users_syntax.py").write_text("def\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("users_nets", "users_broken", "users_syntax"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("folder")
def test_class_with_options():
    path, state = list(sys.path), torch.get_rng_state()
    net = models.resolve("users_nets:Tiny", {"num_classes": 4})
    assert net.fc.weight.shape == (4, 2)
    assert net.pabzip_arch == ("custom", {"num_classes": 4})
    assert sys.path == path
    assert torch.equal(torch.get_rng_state(), state)
    again = models.resolve("users_nets:Tiny", {"num_classes": 4})
    assert torch.equal(net.fc.bias, again.fc.bias)
    other = models.resolve("users_nets:Tiny", {"num_classes": 4}, dense_seed=1)
    assert not torch.equal(net.fc.bias, other.fc.bias)


@pytest.mark.usefixtures("folder")
def test_nested_name():
    assert models.resolve("users_nets:Zoo.tiny", {}).fc.out_features == 3


@pytest.mark.usefixtures("folder")
def test_a_registered_architecture_keeps_its_name():
    assert models.resolve("users_nets:ready", {}).pabzip_arch[0] == "lenet-300-100"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("users_nets", {}, r"expected 'module:callable'"),
        (":Tiny", {}, r"expected 'module:callable'"),
        ("users_nets:", {}, r"expected 'module:callable'"),
        ("users_absent:Tiny", {}, r"no module named 'users_absent' in the current folder"),
        ("users_absent.nets:Tiny", {}, r"no module named 'users_absent' in the current folder"),
        ("users_nets.sub:Tiny", {}, r"no module named 'users_nets\.sub'"),
        ("users_broken:Tiny", {}, r"importing 'users_broken' raised ModuleNotFoundError: .*not_th"),
        ("users_syntax:Tiny", {}, r"importing 'users_syntax' raised SyntaxError"),
        ("..relative:Tiny", {}, r"importing '\.\.relative' raised TypeError"),
        ("users_nets:Absent", {}, r"module 'users_nets' has no 'Absent'; it has .*Tiny"),
        ("users_nets:VALUE", {}, r"expected a class or function, found int"),
        ("users_nets:number", {}, r"expected a torch\.nn\.Module from the call, found int"),
        ("users_nets:broken", {}, r"the call raised ValueError: the user's mistake"),
        ("users_nets:Tiny", {"depth": 3}, r"\{'depth': 3\} do not fit its signature \(num_cl"),
        ("users_nets:Tiny", {"width": "x"}, r"the call raised TypeError"),
    ],
)
def test_clear_errors(target, options, message):
    with pytest.raises(ArchitectureError, match=message):
        models.resolve(target, options)
