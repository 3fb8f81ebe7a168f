"""Caltech-101, read from a small folder in the true form."""

from __future__ import annotations

import io
import shutil
import tarfile
import urllib.error
import zipfile

import pytest

from pabzip import data
from pabzip.errors import DataError

caltech = pytest.importorskip("torchvision.datasets.caltech")

COUNTS = {"BACKGROUND_Google": 2, "Faces": 11, "accordion": 4, "airplanes": 5}


@pytest.fixture
def root(tmp_path, write_image):
    """Three classes and the background, which is none."""
    images = tmp_path / "caltech101" / "101_ObjectCategories"
    for name, count in COUNTS.items():
        for i in range(1, count + 1):
            write_image(images / name / f"image_{i:04d}.jpg", (9 * i, 0, 0), (300, 200))
    return tmp_path


def test_every_fifth_image_of_a_class_is_for_testing(root):
    splits = data.load("caltech101", root=root)
    assert (splits.name, splits.num_classes, splits.input_shape) == ("caltech101", 3, (3, 224, 224))
    assert splits.train.labels.tolist() == [0] * 9 + [1] * 4 + [2] * 4
    assert splits.test.labels.tolist() == [0] * 2 + [2]
    assert not set(splits.train.paths) & set(splits.test.paths)
    assert not any("BACKGROUND" in path for path in splits.train.paths + splits.test.paths)
    assert splits.augmentation == data.RandomResizedCrop()
    inputs, _ = next(data.batches(splits.test, 3))
    assert inputs.shape == (3, 3, 224, 224)


def test_the_split_is_pinned(root):
    # Other test images would make recorded results incomparable.
    splits = data.load("caltech101", root=root)
    assert [path[-8:-4] for path in splits.test.paths] == TEST_IMAGES


def test_missing(root):
    with pytest.raises(DataError, match=r"101_ObjectCategories, found none of them; .*--download"):
        data.load("caltech101", root=root / "elsewhere")
    assert not (root / "elsewhere").exists()


def test_without_the_background_folder(root):
    shutil.rmtree(root / "caltech101" / "101_ObjectCategories" / "BACKGROUND_Google")
    with pytest.raises(DataError, match="expected 101_ObjectCategories to be .* found ValueError"):
        data.load("caltech101", root=root)


def test_empty_classes(root):
    for name in COUNTS:
        for file in (root / "caltech101" / "101_ObjectCategories" / name).iterdir():
            file.unlink()
    with pytest.raises(DataError, match="expected images in the folders of .* found none"):
        data.load("caltech101", root=root)


def test_download(root, monkeypatch):
    from torchvision.datasets.utils import extract_archive

    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        tar.add(root / "caltech101" / "101_ObjectCategories", "101_ObjectCategories")
    new = root / "new"

    def fetch(url: str, download_root: str, filename: str, md5: str) -> None:
        archive = new / "caltech101" / filename
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("caltech-101/101_ObjectCategories.tar.gz", inner.getvalue())
        extract_archive(str(archive), str(download_root))

    def fail(*_, **__) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(caltech, "download_and_extract_archive", fail)
    with pytest.raises(DataError, match="to be fetched from https://data.caltech.edu.*no route"):
        data.load("caltech101", root=new, download=True)
    monkeypatch.setattr(caltech, "download_and_extract_archive", fetch)
    assert len(data.load("caltech101", root=new, download=True).train) == 17


TEST_IMAGES = ["0008", "0009", "0005"]
