"""Importing pabzip is cheap, and its public names are all there and documented."""

from __future__ import annotations

import configparser
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pabzip

HEAVY = ("torch", "torchvision", "onnx", "onnxruntime", "sklearn", "numba", "triton", "matplotlib")


@pytest.mark.parametrize("module", ["pabzip", "pabzip.formats", "pabzip.ticket", "pabzip.cli"])
def test_import_loads_nothing_heavy(module: str) -> None:
    script = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def public_objects() -> list[tuple[str, object]]:
    names = [(f"pabzip.{name}", getattr(pabzip, name)) for name in pabzip.__all__]
    packages = [value for _, value in names if inspect.ismodule(value)]
    for package in packages:
        for name in getattr(package, "__all__", []):
            names.append((f"{package.__name__}.{name}", getattr(package, name)))
    return names


@pytest.mark.parametrize(
    ("name", "value"),
    [pytest.param(name, value, id=name) for name, value in public_objects()],
)
def test_every_public_name_has_a_docstring(name: str, value: object) -> None:
    if not (inspect.ismodule(value) or inspect.isclass(value) or inspect.isroutine(value)):
        return  # a constant: documented where it is defined, which only readers of source can see
    assert inspect.getdoc(value), name
    if inspect.isclass(value):
        for member, method in vars(value).items():
            if inspect.isfunction(method) and not member.startswith("_"):
                assert inspect.getdoc(method), f"{name}.{member}"


def test_dir_lists_what_can_be_had() -> None:
    assert set(pabzip.__all__) <= set(dir(pabzip))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = pabzip.nonsense


def test_whatever_is_installed_is_imported() -> None:
    root = Path(__file__).resolve().parents[1]
    config = configparser.ConfigParser(interpolation=None)
    config.read(root / "setup.cfg", encoding="utf-8")
    extras = config["options.extras_require"]
    wanted = [config["options"]["install_requires"], *(extras[name] for name in extras)]
    wanted = wanted[: 1 + list(extras).index("all")]  # what comes after is for development
    names = {line for text in wanted for line in re.findall(r"^[\w-]+", text, flags=re.MULTILINE)}
    modules = {"scikit-learn": "sklearn", "onnxruntime-gpu": "onnxruntime"}
    folders = [root / "pabzip", root / "formats", root / "cli"]
    source = "\n".join(file.read_text("utf-8") for at in folders for file in at.rglob("*.py"))
    assert len(names) > 12
    for name in names:
        module = modules.get(name, name.replace("-", "_"))
        assert re.search(rf"(import|from) {module}\b|\"{module}\"", source), name
