"""MNIST and Fashion-MNIST, read from small files in the true on-disk format."""

from __future__ import annotations

import gzip
import hashlib
import struct

import numpy as np
import pytest
import torch

from pabzip import data
from pabzip.errors import DataError

torchvision_datasets = pytest.importorskip("torchvision.datasets")

COUNTS = {"train": 5, "t10k": 3}


def idx(array: np.ndarray) -> bytes:
    """Return an array of bytes in the IDX format: magic, sizes (big-endian), values."""
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def pixels_of(part: str) -> np.ndarray:
    return np.random.default_rng(COUNTS[part]).integers(0, 256, (COUNTS[part], 28, 28), np.uint8)


def labels_of(part: str) -> np.ndarray:
    return np.arange(COUNTS[part], dtype=np.uint8) % 10


@pytest.fixture(params=["mnist", "fashion-mnist"])
def kind(request, monkeypatch, tmp_path):
    """The four archives of one dataset, whose MD5 torchvision is told to expect."""
    class_name = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[request.param]
    dataset = getattr(torchvision_datasets, class_name)
    raw = tmp_path / class_name / "raw"
    raw.mkdir(parents=True)
    resources = []
    for part in COUNTS:
        for what, array in (("images-idx3", pixels_of(part)), ("labels-idx1", labels_of(part))):
            file = raw / f"{part}-{what}-ubyte.gz"
            file.write_bytes(gzip.compress(idx(array)))
            md5 = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
            resources.append((file.name, md5))
    assert {name for name, _ in resources} == {name for name, _ in dataset.resources}
    monkeypatch.setattr(dataset, "resources", resources)
    monkeypatch.setattr(dataset, "mirrors", [(tmp_path / "nowhere").as_uri() + "/"])
    return request.param, dataset, tmp_path, raw


def check(splits, name: str) -> None:
    assert (splits.name, splits.num_classes, splits.input_shape) == (name, 10, (1, 28, 28))
    for part, found in (("train", splits.train), ("t10k", splits.test)):
        assert np.array_equal(found.images[:, 0].numpy(), pixels_of(part))
        assert np.array_equal(found.labels.numpy(), labels_of(part))
        assert (found.images.dtype, found.labels.dtype) == (torch.uint8, torch.int64)
    assert splits.augmentation == data.RandomCrop(padding=2, mirror=name == "fashion-mnist")


def test_unpacks_archives_then_reads_without_them(kind):
    name, _, root, raw = kind
    check(data.load(name, root=root), name)
    for archive in raw.glob("*.gz"):
        archive.unlink()
    check(data.load(name, root=root), name)


def test_missing_file_and_damaged_archive(kind):
    name, dataset, root, raw = kind
    (raw / dataset.resources[1][0]).write_bytes(b"no archive")
    with pytest.raises(DataError) as caught:
        data.load(name, root=root)
    message = str(caught.value)
    files = [str((raw / file).relative_to(root)) for file, _ in dataset.resources]
    unpacked = [file.removesuffix(".gz") for file in files]
    assert f"expected in {root} {', '.join(unpacked)}, or {', '.join(files)}, found " in message
    assert f"{unpacked[0]} missing, " in message
    assert f", {files[1]} damaged (MD5); name the folder" in message
    assert "download=True (--download)" in message


def test_no_files_at_all(kind):
    name, _, root, _ = kind
    with pytest.raises(
        DataError, match=r"train-images-idx3-ubyte, .*, found none of them; name the"
    ):
        data.load(name, root=root / "elsewhere")


@pytest.mark.parametrize("damage", [b"", b"\0\0\x08\x03" + bytes(12), b"\0\0\x08\x01" + bytes(4)])
def test_damaged_unpacked_files(kind, damage):
    name, _, root, raw = kind
    data.load(name, root=root)
    (raw / "train-images-idx3-ubyte").write_bytes(damage)
    with pytest.raises(DataError, match=rf"data '{name}': expected .*{raw}"):
        data.load(name, root=root)


def test_counts_that_differ(kind):
    name, _, root, raw = kind
    data.load(name, root=root)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(idx(labels_of("train")))
    with pytest.raises(DataError, match=r"found images \[3, 28, 28\] and labels \[5\]; remove"):
        data.load(name, root=root)


def test_download(kind, server, monkeypatch):
    name, dataset, root, raw = kind
    new = root / "new"
    with pytest.raises(DataError, match="to be fetched from file:.*check the network"):
        data.load(name, root=new, download=True)
    monkeypatch.setattr(dataset, "mirrors", [f"{server}/{raw.relative_to(root)}/"])
    check(data.load(name, root=new, download=True), name)
    check(data.load(name, root=new), name)
