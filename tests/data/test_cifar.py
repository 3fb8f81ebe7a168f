"""CIFAR-10 and CIFAR-100, read from small files in the true on-disk format."""

from __future__ import annotations

import hashlib
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from pabzip import data
from pabzip.data.download import dataset_root
from pabzip.errors import DataError, MissingDependencyError

torchvision_datasets = pytest.importorskip("torchvision.datasets")

COUNT = 4  # images in each small file


def write_batch(path: Path, seed: int, **labels) -> None:
    """Write one batch as the dataset's authors do: rows of 3072 bytes, channel after channel."""
    pixels = np.random.default_rng(seed).integers(0, 256, (COUNT, 3072), dtype=np.uint8)
    path.write_bytes(pickle.dumps({"data": pixels, **labels}, protocol=2))


@pytest.fixture(params=["cifar10", "cifar100"])
def kind(request, monkeypatch, tmp_path):
    """Small files of one dataset in ``tmp_path``, whose MD5 torchvision is told to expect."""
    name = request.param
    dataset = getattr(torchvision_datasets, name.upper())
    folder = tmp_path / dataset.base_folder
    folder.mkdir()
    for index, (file, _) in enumerate([*dataset.train_list, *dataset.test_list]):
        labels = [(index + i) % 10 for i in range(COUNT)]
        if name == "cifar10":
            write_batch(folder / file, index, labels=labels)
        else:
            fine = [label * 10 for label in labels]
            write_batch(folder / file, index, fine_labels=fine, coarse_labels=labels)
    meta = folder / dataset.meta["filename"]
    meta.write_bytes(pickle.dumps({dataset.meta["key"]: [f"class {i}" for i in range(100)]}))

    def md5(path: Path) -> str:
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()

    for part in ("train_list", "test_list"):
        lists = [[file, md5(folder / file)] for file, _ in getattr(dataset, part)]
        monkeypatch.setattr(dataset, part, lists)
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": md5(meta)})
    archive = tmp_path / "elsewhere.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=dataset.base_folder)
    monkeypatch.setattr(dataset, "tgz_md5", md5(archive))
    monkeypatch.setattr(dataset, "url", (tmp_path / "no-such-archive.tar.gz").as_uri())
    return name, dataset, tmp_path


def remove(folder: Path) -> None:
    """Remove a folder of plain files."""
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def test_reads_the_unpacked_folder(kind):
    name, dataset, root = kind
    splits = data.load(name, root=root)
    classes = {"cifar10": 10, "cifar100": 100}[name]
    assert (splits.name, splits.num_classes) == (name, classes)
    assert (splits.in_channels, splits.image_size) == (3, 32)
    assert splits.augmentation is data.crop_and_flip
    assert len(splits.train) == COUNT * len(dataset.train_list)
    assert len(splits.test) == COUNT
    first = np.random.default_rng(0).integers(0, 256, (COUNT, 3072), dtype=np.uint8)
    assert np.array_equal(splits.train.images[:COUNT].numpy(), first.reshape(COUNT, 3, 32, 32))
    assert splits.train.images.is_contiguous()
    assert splits.train.images.dtype == torch.uint8
    step = {"cifar10": 1, "cifar100": 10}[name]
    assert splits.train.labels[:COUNT].tolist() == [0, step, 2 * step, 3 * step]
    inputs, _ = next(data.batches(splits.train, 2, shuffle_seed=0, augmentation=data.crop_and_flip))
    assert inputs.shape == (2, 3, 32, 32)


def test_the_deviations_of_cifar10_and_the_published_ones(kind):
    name, _, root = kind
    if name == "cifar100":
        return
    true, published = (data.load(n, root=root) for n in ("cifar10", "cifar10-published"))
    assert torch.equal(true.train.images, published.train.images)
    assert torch.equal(true.test.labels, published.test.labels)
    assert (published.num_classes, published.input_shape) == (10, (3, 32, 32))
    ratio = published.test.inputs() / true.test.inputs()
    expected = torch.tensor([0.2470 / 0.2023, 0.2435 / 0.1994, 0.2616 / 0.2010])
    torch.testing.assert_close(ratio.mean(dim=(0, 2, 3)), expected)


def test_unpacks_an_archive_that_is_there(kind):
    name, dataset, root = kind
    remove(root / dataset.base_folder)
    (root / "elsewhere.tar.gz").rename(root / dataset.filename)
    assert len(data.load(name, root=str(root)).test) == COUNT
    assert (root / dataset.base_folder).is_dir()


def test_missing_files_and_archive(kind):
    name, dataset, root = kind
    remove(root / dataset.base_folder)
    with pytest.raises(DataError) as caught:
        data.load(name, root=root)
    message = str(caught.value)
    assert f"expected in {root} {dataset.base_folder}/" in message
    assert f", or {dataset.filename}, found none of them; name the folder" in message
    assert all(f"{dataset.base_folder}/{file}, " in message for file, _ in dataset.train_list)
    assert "download=True (--download)" in message


def test_one_damaged_file(kind):
    name, dataset, root = kind
    file = root / dataset.base_folder / dataset.test_list[0][0]
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(
        DataError, match=rf"found {dataset.base_folder}/{file.name} damaged \(MD5\)"
    ):
        data.load(name, root=root)


def test_a_damaged_file_is_never_unpickled(kind):
    name, dataset, root = kind
    file = root / dataset.base_folder / dataset.train_list[0][0]
    hostile = b"cbuiltins\nexec\n(S'raise SystemExit(9)'\ntR."
    file.write_bytes(hostile)
    with pytest.raises(DataError, match=r"damaged \(MD5\)"):
        data.load(name, root=root)


def test_damaged_archive(kind):
    name, dataset, root = kind
    remove(root / dataset.base_folder)
    (root / dataset.filename).write_bytes(b"not an archive")
    with pytest.raises(DataError, match=r" missing, cifar.*tar\.gz damaged \(MD5\); name"):
        data.load(name, root=root)


def test_download_that_fails(kind):
    name, dataset, root = kind
    remove(root / dataset.base_folder)
    with pytest.raises(DataError, match=r"to be fetched from file:.*check the network"):
        data.load(name, root=root, download=True)


def test_download(kind, server, monkeypatch):
    name, dataset, root = kind
    remove(root / dataset.base_folder)
    monkeypatch.setattr(dataset, "url", f"{server}/elsewhere.tar.gz")
    splits = data.load(name, root=root / "new folder", download=True)
    assert len(splits.test) == COUNT
    assert len(data.load(name, root=root / "new folder").test) == COUNT


def test_default_folder(kind, monkeypatch):
    name, _, root = kind
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))
    assert dataset_root(None) == root / "cache" / "pabzip"
    with pytest.raises(DataError, match=str(root / "cache" / "pabzip")):
        data.load(name)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(root))
    assert dataset_root(None) == root / ".cache" / "pabzip"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ModuleNotFoundError("No module named 'torchvision'", name="torchvision"),
            r"expected torchvision, found no module .*pip install 'pabzip\[train\]'",
        ),
        (
            RuntimeError("operator torchvision::nms does not exist"),
            r"matches torch .*nms does not exist.*--force-reinstall torch torchvision",
        ),
        (OSError("undefined symbol: _ZN3c10"), r"matches torch .*undefined symbol"),
    ],
)
def test_torchvision_missing_or_of_another_torch(error, message, monkeypatch):
    class Refuse:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "torchvision":
                raise error

    for name in list(sys.modules):
        if name.partition(".")[0] == "torchvision":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Refuse(), *sys.meta_path])
    with pytest.raises(MissingDependencyError, match=message):
        data.load("cifar10")
