"""SVHN, read from small .mat files."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from pabzip import data
from pabzip.errors import DataError

torchvision_datasets = pytest.importorskip("torchvision.datasets")
scipy_io = pytest.importorskip("scipy.io")

COUNTS = {"train": 5, "test": 3}


def pixels_of(split: str) -> np.ndarray:
    """Pixels as the dataset's authors store them: height, width, channel, image."""
    shape = (32, 32, 3, COUNTS[split])
    return np.random.default_rng(COUNTS[split]).integers(0, 256, shape, np.uint8)


@pytest.fixture
def root(monkeypatch, tmp_path):
    """Both files, whose MD5 torchvision is told to expect."""
    lists = {}
    for split, count in COUNTS.items():
        file = tmp_path / f"{split}_32x32.mat"
        labels = np.array([[10], [1], [2], [3], [9]][:count], dtype=np.uint8)
        scipy_io.savemat(file, {"X": pixels_of(split), "y": labels})
        md5 = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
        lists[split] = [(tmp_path / "nowhere" / file.name).as_uri(), file.name, md5]
    monkeypatch.setattr(torchvision_datasets.SVHN, "split_list", lists)
    return tmp_path


def check(splits) -> None:
    assert (splits.name, splits.num_classes, splits.input_shape) == ("svhn", 10, (3, 32, 32))
    for split, found in (("train", splits.train), ("test", splits.test)):
        assert np.array_equal(found.images.numpy(), pixels_of(split).transpose(3, 2, 0, 1))
        assert found.images.is_contiguous()
    assert splits.train.labels.tolist() == [0, 1, 2, 3, 9]
    assert splits.test.labels.tolist() == [0, 1, 2]


def test_reads_both_files(root):
    splits = data.load("svhn", root=root)
    check(splits)
    assert splits.augmentation == data.RandomCrop(padding=4, mirror=False)


def test_missing_and_damaged(root):
    (root / "train_32x32.mat").unlink()
    (root / "test_32x32.mat").write_bytes(b"no matrix")
    with pytest.raises(DataError) as caught:
        data.load("svhn", root=root)
    assert "found train_32x32.mat missing, test_32x32.mat damaged (MD5); name the" in str(
        caught.value
    )
    assert "download=True (--download)" in str(caught.value)


def test_download(root, server, monkeypatch):
    new = root / "new"
    with pytest.raises(DataError, match="expected train_32x32.mat to be fetched from file:"):
        data.load("svhn", root=new, download=True)
    lists = {
        split: [f"{server}/{file}", file, md5]
        for split, (_, file, md5) in torchvision_datasets.SVHN.split_list.items()
    }
    monkeypatch.setattr(torchvision_datasets.SVHN, "split_list", lists)
    check(data.load("svhn", root=new, download=True))
    check(data.load("svhn", root=new))
