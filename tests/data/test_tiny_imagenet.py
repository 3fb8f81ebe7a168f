"""Tiny ImageNet, read from a small folder in the true form."""

from __future__ import annotations

import hashlib
import shutil
import zipfile

import pytest

from pabzip import data
from pabzip.data import tiny_imagenet
from pabzip.errors import DataError

pytest.importorskip("torchvision")

CLASSES = ("n01443537", "n01629819")
COLORS = {"n01443537": (255, 0, 0), "n01629819": (0, 0, 255)}


@pytest.fixture
def root(tmp_path, write_image):
    """Two classes, three training images each, three of ``val``; one image is gray."""
    folder = tmp_path / "tiny-imagenet-200"
    for name in CLASSES:
        for i in range(3):
            color = 128 if (name, i) == (CLASSES[1], 2) else COLORS[name]
            write_image(folder / "train" / name / "images" / f"{name}_{i}.JPEG", color, (64, 64))
        (folder / "train" / name / f"{name}_boxes.txt").write_text("n_0.JPEG\t0\t0\t62\t62\n")
    (folder / "wnids.txt").write_text("\n".join(reversed(CLASSES)) + "\n")
    lines = []
    for i, name in enumerate((CLASSES[1], CLASSES[0], CLASSES[1])):
        write_image(folder / "val" / "images" / f"val_{i}.JPEG", COLORS[name], (64, 64))
        lines.append(f"val_{i}.JPEG\t{name}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return tmp_path


def check(splits) -> None:
    assert (splits.name, splits.num_classes) == ("tiny-imagenet", 2)
    assert splits.input_shape == (3, 64, 64)
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert splits.test.labels.tolist() == [1, 0, 1]
    middles = splits.test.images[:, :, 32, 32].float()
    assert middles.argmax(1).tolist() == [2, 0, 2]
    assert splits.train.images[5, :, 32, 32].tolist() == [128, 128, 128]


def test_reads_the_unpacked_folder(root):
    splits = data.load("tiny-imagenet", root=root)
    check(splits)
    assert splits.augmentation == data.RandomCrop(padding=8, mirror=True)


def pack(root, monkeypatch) -> None:
    """Put the folder into the archive, whose MD5 is expected from then on."""
    archive = root / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted((root / "tiny-imagenet-200").rglob("*")):
            file.write(path, path.relative_to(root))
    shutil.rmtree(root / "tiny-imagenet-200")
    md5 = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(tiny_imagenet, "_MD5", md5)


def test_unpacks_an_archive_that_is_there(root, monkeypatch):
    pack(root, monkeypatch)
    check(data.load("tiny-imagenet", root=root))


def test_damaged_archive_and_none(root, monkeypatch):
    pack(root, monkeypatch)
    (root / "tiny-imagenet-200.zip").write_bytes(b"no archive")
    with pytest.raises(
        DataError, match=r"200 missing, tiny-imagenet-200.zip damaged \(MD5\); name"
    ):
        data.load("tiny-imagenet", root=root)
    with pytest.raises(DataError, match=r"found none of them; .*download=True \(--download\)"):
        data.load("tiny-imagenet", root=root / "elsewhere")


def test_download(root, server, monkeypatch):
    pack(root, monkeypatch)
    monkeypatch.setattr(tiny_imagenet, "_URL", f"{server}/none.zip")
    with pytest.raises(DataError, match="expected tiny-imagenet-200.zip to be fetched from http"):
        data.load("tiny-imagenet", root=root / "new", download=True)
    monkeypatch.setattr(tiny_imagenet, "_URL", f"{server}/tiny-imagenet-200.zip")
    check(data.load("tiny-imagenet", root=root / "new", download=True))


def test_a_class_is_missing(root):
    shutil.rmtree(root / "tiny-imagenet-200" / "train" / CLASSES[0])
    with pytest.raises(DataError, match=r"the 2 classes of wnids.txt, found 1; remove the folder"):
        data.load("tiny-imagenet", root=root)


@pytest.mark.parametrize("file", ["wnids.txt", "val/val_annotations.txt"])
def test_a_list_is_missing(root, file):
    (root / "tiny-imagenet-200" / file).unlink()
    with pytest.raises(DataError, match=rf"expected the text file .*{file}, found .*No such file"):
        data.load("tiny-imagenet", root=root)


@pytest.mark.parametrize("line", ["val_0.JPEG", "val_0.JPEG\tn9\t0\t0\t1\t1"])
def test_a_malformed_line(root, line):
    file = root / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(DataError, match="line 4: expected an image, a tab and one of the 2 class"):
        data.load("tiny-imagenet", root=root)


def test_a_missing_image_and_one_of_another_size(root, write_image):
    image = root / "tiny-imagenet-200" / "val" / "images" / "val_1.JPEG"
    write_image(image, (1, 2, 3), (64, 60))
    with pytest.raises(DataError, match=r"val_1.JPEG: expected 64x64 pixels, found 64x60"):
        data.load("tiny-imagenet", root=root)
    image.unlink()
    with pytest.raises(DataError, match=r"val_1.JPEG: expected an image, found FileNotFound"):
        data.load("tiny-imagenet", root=root)
