"""What is said of a dataset without it agrees with the dataset."""

from __future__ import annotations

import pytest

from pabzip import data
from pabzip.data.registry import GEOMETRIES, Geometry, geometry
from pabzip.errors import DataError


def test_the_embedded_digits() -> None:
    splits = data.load("digits")
    found = geometry("digits")
    assert found == Geometry(splits.num_classes, splits.in_channels, splits.image_size)
    assert found.input_shape == tuple(splits.train.images.shape[1:])


def test_every_dataset_but_a_folder_has_one() -> None:
    assert set(data.names()) - {"folder"} <= set(GEOMETRIES)


def test_unknown() -> None:
    with pytest.raises(DataError, match=r"expected one of digits, .*imagenet, found 'mnst'"):
        geometry("mnst")


def test_published_sizes() -> None:
    assert geometry("cifar100") == Geometry(100, 3, 32)
    assert geometry("imagenet").input_shape == (3, 224, 224)
