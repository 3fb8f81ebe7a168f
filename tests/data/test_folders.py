"""Folders of images, ImageNet's among them, as small true files."""

from __future__ import annotations

import pytest
import torch

from pabzip import data
from pabzip.data import folders
from pabzip.errors import DataError

pytest.importorskip("torchvision")

GREEN, BLUE = (0, 255, 0), (0, 0, 255)


@pytest.fixture
def root(tmp_path, write_image):
    """Two classes, five training images of 20x24 pixels and three test images, of three kinds."""
    for i, suffix in enumerate(("jpg", "jpeg", "JPEG")):
        write_image(tmp_path / "train" / "cat" / f"{i}.{suffix}", GREEN, (20, 24))
    for i in range(2):
        write_image(tmp_path / "train" / "dog" / "more" / f"{i}.png", BLUE, (20, 24))
    (tmp_path / "train" / "dog" / "notes.txt").write_text("no image")
    for i in range(3):
        write_image(tmp_path / "test" / ("dog" if i else "cat") / f"{i}.bmp", GREEN, (50, 40))
    return tmp_path


@pytest.mark.parametrize("by_path", [False, True])
def test_labels_are_the_sorted_subfolders(root, by_path):
    splits = data.load(str(root)) if by_path else data.load("folder", root=root)
    assert splits.name == (str(root) if by_path else "folder")
    assert splits.num_classes == 2
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert splits.test.labels.tolist() == [0, 1, 1]
    assert splits.augmentation == data.RandomResizedCrop()
    # No larger than the first image's shorter side.
    assert splits.input_shape == (3, 20, 20)
    assert (splits.in_channels, splits.image_size) == (3, 20)
    inputs, labels = next(data.batches(splits.train, 5))
    assert (inputs.argmax(1)[:, 10, 10] == torch.where(labels == 0, 1, 2)).all()


def test_large_images_get_the_usual_size(root, write_image):
    write_image(root / "train" / "cat" / "0.jpg", GREEN, (400, 300))
    splits = data.load("folder", root=root)
    assert (splits.image_size, splits.train.resized) == (224, 256)


def test_val_stands_in_for_test(root):
    (root / "test").rename(root / "val")
    assert len(data.load("folder", root=root).test) == 3


def test_no_root():
    for name in ("folder", "imagenet"):
        with pytest.raises(DataError, match=r"found none; it is not fetched: name it with root="):
            data.load(name, download=True)


def test_a_path_and_a_root(root):
    with pytest.raises(DataError, match="a path alone, found .* leave one of them out"):
        data.load(str(root), root=root)


def test_missing_folders(root, tmp_path):
    with pytest.raises(DataError, match=r"nowhere/train: expected a folder .* found nothing"):
        data.load("folder", root=tmp_path / "nowhere")
    (root / "test").rename(root / "tests")
    with pytest.raises(
        DataError, match=r"val: expected a folder .* found nothing; name the folder"
    ):
        data.load("folder", root=root)


def test_a_folder_without_classes(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="train: expected one subfolder .* found no subfolder"):
        data.load("folder", root=tmp_path)


def test_a_class_without_images(root):
    (root / "train" / "bird").mkdir()
    with pytest.raises(
        DataError, match=r"train: expected images in every .* bird.*remove the empty"
    ):
        data.load("folder", root=root)


def test_a_class_that_was_never_trained(root, write_image):
    write_image(root / "test" / "emu" / "0.png", GREEN)
    with pytest.raises(DataError, match="test: expected classes that the training .* found emu"):
        data.load("folder", root=root)


def test_a_damaged_first_image(root):
    (root / "train" / "cat" / "0.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0\.jpg: expected an image, found UnidentifiedImageError"):
        data.load("folder", root=root)


def test_imagenet(root, monkeypatch):
    (root / "test").rename(root / "val")
    with pytest.raises(DataError, match="expected 1000 classes .* found 2; for a part of ImageNet"):
        data.load("imagenet", root=root)
    monkeypatch.setattr(folders, "_IMAGENET_CLASSES", 2)
    splits = data.load("imagenet", root=root)
    assert (splits.name, len(splits.train), len(splits.test)) == ("imagenet", 5, 3)
    assert (splits.image_size, splits.train.resized, splits.test.resized) == (224, 256, 256)
    assert splits.mean == (0.485, 0.456, 0.406)
