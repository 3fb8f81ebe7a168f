"""Registries: what is read from the text of modules is what their import gives."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from pabzip.errors import RecipeError
from pabzip.registry import METHODS, Registry, constant


@pytest.mark.parametrize(
    ("package", "module", "name"),
    [
        ("pabzip.search", "schedule", "SCHEDULES"),
        ("pabzip.search", "schedule", "SCOPES"),
        ("pabzip.unmask", "bop", "STARTS"),
        ("pabzip.unmask", "psg_functions", "BEHAVIORS"),
        ("pabzip.unmask", "psg_functions", "INPUT_GRADIENTS"),
        ("pabzip.unmask", "psg_functions", "QUANTIZERS"),
    ],
)
def test_a_constant_is_read_without_importing_its_module(package, module, name):
    value = getattr(importlib.import_module(f"{package}.{module}"), name)
    assert constant(package, module, name) == tuple(value)
    code = (
        "import sys\nfrom pabzip.registry import constant\n"
        f"constant({package!r}, {module!r}, {name!r})\nsys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_constant_that_is_not_there_is_named():
    with pytest.raises(LookupError, match=r"pabzip\.unmask\.bop has no ENDS"):
        constant("pabzip.unmask", "bop", "ENDS")


def test_the_methods_of_the_paper_are_listed_without_torch():
    code = (
        "import sys\nfrom pabzip.registry import METHODS\nprint(*METHODS)\n"
        "assert not {'torch', 'pabzip.train.methods'} & set(sys.modules)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert found == [
        "pab-bop", "pab-bop-psg", "pab-latent", "pab-latent-psg", "signsgd", "sgd", "dense-sgd",
        "dense-sgd-short",
    ]  # fmt: skip
    assert [name for name in found if not METHODS.facts(name).get("masked", True)] == [
        "dense-sgd", "dense-sgd-short"
    ]  # fmt: skip


def test_a_name_that_another_module_has_is_refused():
    registry = Registry("method", "register_method", "pabzip.train", error=RecipeError)
    with pytest.raises(RecipeError, match=r"method: expected a name that is free.*methods"):
        registry.register("pab-bop")(test_a_constant_that_is_not_there_is_named)
    registry.register("mine", uses=("mine",))(test_a_constant_that_is_not_there_is_named)
    assert registry.names[-1] == "mine"
    assert registry.facts("mine") == {"uses": ("mine",)}
    assert registry.get("mine") is test_a_constant_that_is_not_there_is_named
    with pytest.raises(RecipeError, match=r"found 'mien'; did you mean mine\?"):
        registry.check("mien")
