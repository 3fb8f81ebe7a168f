"""The embedded digits and the registry of datasets."""

from __future__ import annotations

import builtins
import hashlib

import numpy as np
import pytest
import torch

from pabzip import data
from pabzip.errors import DataError, MissingDependencyError

# SHA-256 of the 397 indices of test images, in order, as little-endian int64. A change would mix
# training images into the test images of every released ticket.
TEST_INDICES = "f1d4ab90d11909b3d3163c3911872b64eca834987b95e8f43b47a863648dcd9f"


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def test_shapes_and_values(digits):
    assert digits.name == "digits"
    assert (digits.num_classes, digits.in_channels, digits.image_size) == (10, 1, 8)
    assert digits.augmentation is None
    assert (len(digits.train), len(digits.test)) == (1400, 397)
    for part in (digits.train, digits.test):
        assert part.images.shape == (len(part), 1, 8, 8)
        assert part.images.dtype == torch.uint8
        assert part.images.max() == part.peak == 16
        assert part.labels.dtype == torch.int64
        assert torch.bincount(part.labels, minlength=10).min() >= 30


def test_the_split_is_pinned(digits):
    from sklearn import datasets

    order = data.permutation(1797, seed=1797, stream=0)
    assert sorted(order) == list(range(1797))
    assert hashlib.sha256(order[1400:].astype("<i8").tobytes()).hexdigest() == TEST_INDICES
    whole = datasets.load_digits()
    assert np.array_equal(digits.test.images[:, 0].numpy(), whole.images[order[1400:]])
    assert np.array_equal(digits.train.labels.numpy(), whole.target[order[:1400]])


def test_normalization_constants_are_those_of_the_training_images(digits):
    scaled = digits.train.images.double() / 16
    assert digits.mean == (round(scaled.mean().item(), 4),)
    assert digits.std == (round(scaled.std(unbiased=False).item(), 4),)
    inputs = digits.train.inputs()
    assert inputs.dtype == torch.float32
    assert inputs.mean().abs() < 1e-3
    assert (inputs.std() - 1).abs() < 1e-3


def test_unknown_names():
    with pytest.raises(
        DataError,
        match=r"one of caltech101, .*digits, .*path of a folder, found 'mni'; did you mean mnist",
    ):
        data.load("mni")
    assert len(set(data.names())) == len(data.names())


def test_without_scikit_learn(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name == "sklearn":
            raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingDependencyError, match=r"pip install 'pabzip\[train\]'"):
        data.load("digits")
