"""Datasets by name: what is said of each without it, and datasets of other packages."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from pabzip import data
from pabzip.data import Geometry, Images, Splits, geometry
from pabzip.errors import DataError
from pabzip.registry import DATASETS, register_dataset

NAMES = {
    "caltech101": Geometry(101, 3, 224),
    "cifar10": Geometry(10, 3, 32),
    "cifar10-published": Geometry(10, 3, 32),
    "cifar100": Geometry(100, 3, 32),
    "cluttered-digits": Geometry(10, 3, 32),
    "digits": Geometry(10, 1, 8),
    "fashion-mnist": Geometry(10, 1, 28),
    "imagenet": Geometry(1000, 3, 224),
    "mnist": Geometry(10, 1, 28),
    "svhn": Geometry(10, 3, 32),
    "tiny-imagenet": Geometry(200, 3, 64),
}


def test_names_and_what_a_network_must_fit():
    assert sorted(data.names()) == sorted([*NAMES, "folder"])
    assert {name: geometry(name) for name in NAMES} == NAMES
    assert geometry("imagenet").input_shape == (3, 224, 224)


def test_it_agrees_with_the_dataset():
    splits = data.load("digits")
    assert geometry("digits") == Geometry(splits.num_classes, splits.in_channels, splits.image_size)
    assert geometry("digits").input_shape == tuple(splits.train.images.shape[1:])


def test_none_is_known_of_a_folder_or_of_no_dataset():
    with pytest.raises(DataError, match=r"expected one of .*, found 'mnst'; did you mean mnist\?"):
        geometry("mnst")
    with pytest.raises(DataError, match=r"known classes and size, found 'folder'; load it"):
        geometry("folder")


def test_names_and_facts_need_neither_torch_nor_the_loaders():
    code = (
        "import sys; from pabzip.registry import DATASETS; assert 'svhn' in DATASETS.names;"
        "assert DATASETS.facts('svhn')['shape'] == (3, 32, 32);"
        "sys.exit('torch' in sys.modules or 'pabzip.data' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_package_tells_them_without_torch():
    code = (
        "import sys; from pabzip import data; assert 'svhn' in data.names();"
        "assert data.geometry('svhn').input_shape == (3, 32, 32);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_functions_are_what_the_package_names_whatever_was_imported_first():
    code = (
        "import pabzip.data.images, pabzip.data.order; from pabzip import data;"
        "assert all(callable(getattr(data, name)) for name in data.__all__ if name[0].islower())"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_dataset_of_another_package(monkeypatch, tmp_path):
    monkeypatch.setattr(DATASETS, "_own", dict(DATASETS._own))

    @register_dataset("stripes", classes=2, shape=(1, 4, 4))
    def load_stripes(name, *, root, download):
        assert (root, download) == (tmp_path, True)
        part = Images(
            torch.zeros(6, 1, 4, 4, dtype=torch.uint8), torch.arange(6) % 2, 255, (0.5,), (0.5,)
        )
        return Splits(name, part, part, num_classes=2)

    assert "stripes" in data.names()
    assert geometry("stripes") == Geometry(2, 1, 4)
    splits = data.load("stripes", root=tmp_path, download=True)
    assert (splits.name, splits.input_shape) == ("stripes", (1, 4, 4))
    with pytest.raises(DataError, match="'digits', which pabzip.data.digits has registered"):
        register_dataset("digits", classes=2, shape=(1, 4, 4))(load_stripes)


@pytest.mark.parametrize("name", ["digits", "cluttered-digits"])
def test_a_dataset_is_augmented_by_default_where_it_can_be(name):
    pytest.importorskip("sklearn")
    splits = data.load(name)
    assert DATASETS.facts(name).get("augmented", False) == (splits.augmentation is not None)


def test_the_default_recipe_augments_what_says_so(monkeypatch):
    from pabzip.train import default_recipe

    monkeypatch.setattr(DATASETS, "_own", dict(DATASETS._own))

    @register_dataset("as-it-is", classes=2, shape=(1, 4, 4))
    def load(name, *, root=None, download=False):
        raise NotImplementedError

    assert not default_recipe(data="as-it-is").augment
    assert default_recipe(data="cifar10").augment
    assert default_recipe(data="photos/of/mine").augment
