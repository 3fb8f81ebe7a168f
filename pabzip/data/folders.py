"""Folders of images, one subfolder a class: the caller's own, ImageNet's, Caltech-101's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from pabzip.data.augment import RandomResizedCrop
from pabzip.data.download import Root, dataset_root, torchvision_datasets
from pabzip.data.image_files import ImageFiles, open_image
from pabzip.data.images import Splits
from pabzip.errors import DataError
from pabzip.registry import register_dataset

Sample = tuple[str, int]
"""Path and label of an image."""

SIZE = 224
"""Height and width of an input in pixels, the field's usual one for photographs."""
RESIZED = 256
"""Short side of an image before its middle is taken for evaluation."""

_IMAGENET_CLASSES = 1000


@register_dataset("folder", augmented=True)
@register_dataset("imagenet", classes=1000, shape=(3, 224, 224), augmented=True)
def load_folder(name: str, *, root: Root = None, download: bool = False) -> Splits:
    """Load the caller's own images, or ImageNet's: ``train`` and ``test``, one subfolder a class.

    The sorted names of ``train``'s subfolders are the classes. Files are decoded on use. Inputs are
    224x224 pixels, the middle of an image of 256 pixels in evaluation; where the shorter side of
    the first training image is less than 224, that is the size of both, so that folders of small
    images suit the networks for small images. Pixels are normalized by ImageNet's constants.

    ImageNet, 1,281,167 training and 50,000 test images of 1,000 classes, has the form that
    torchvision and most training code expect: subfolders named by their WordNet numbers. The files
    can be had from image-net.org alone, after registration. Inputs are 224x224 pixels whatever the
    first image. A part of ImageNet is loaded as the dataset ``"folder"``.

    Args:
        name: of the dataset.
        root: the folder that holds ``train`` and ``test``, or ``val`` in its place, as ImageNet's
            does.
        download: nothing can be fetched; not used.

    Raises:
        DataError: a folder is missing or empty, a class holds no images, ``test`` holds a class
            that ``train`` does not, or ImageNet has not 1,000 classes.
        MissingDependencyError: torchvision is missing or does not match torch.

    Source: for ImageNet, Russakovsky et al. 2015, ImageNet Large Scale Visual Recognition
    Challenge.
    """
    if root is None:
        raise DataError(
            f"data {name!r}: expected the folder that holds the images, found none; it is not "
            "fetched: name it with root= (--data-root)"
        )
    torchvision_datasets()  # which is to be missed before any file is
    folder = dataset_root(root)
    train, test = folder / "train", folder / "test"
    if name == "imagenet" or not test.is_dir():
        test = folder / "val"
    classes = class_names(train)
    learned, measured = samples_of(train, classes), samples_of(test, classes)
    if name == "imagenet" and len(classes) != _IMAGENET_CLASSES:
        raise DataError(
            f"data 'imagenet': expected {_IMAGENET_CLASSES} classes in {train}, found "
            f"{len(classes)}; for a part of ImageNet use the data 'folder'"
        )
    # What is called ImageNet is measured as ImageNet is, whatever its first image.
    first = SIZE if name == "imagenet" else min(open_image(learned[0][0]).size)
    size, resized = (SIZE, RESIZED) if first >= SIZE else (first, first)
    return Splits(
        name=name,
        train=image_files(learned, size=size, resized=resized),
        test=image_files(measured, size=size, resized=resized),
        num_classes=len(classes),
        augmentation=RandomResizedCrop(),
    )


def class_names(folder: Path) -> list[str]:
    """Return the sorted names of the subfolders of ``folder``.

    Raises:
        DataError: there is no such folder, or it holds none.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: expected a folder with one subfolder of images a class, found "
            f"{'a file' if folder.exists() else 'nothing'}; name the folder above it with root= "
            "(--data-root)"
        )
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not names:
        raise DataError(
            f"{folder}: expected one subfolder of images a class, found no subfolder; "
            "put the images of each class into a folder of their own"
        )
    return names


def samples_of(folder: Path, classes: Sequence[str]) -> list[Sample]:
    """Return paths and labels of all images, class after class, sorted by path.

    ``classes`` names all classes in the order of their labels, ``folder`` may hold fewer.

    Raises:
        DataError: a subfolder that is no class, or that holds no image.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    labels = {name: label for label, name in enumerate(classes)}
    here = class_names(folder)
    unknown = [name for name in here if name not in labels]
    if unknown:
        raise DataError(
            f"{folder}: expected classes that the training images have too, found "
            f"{', '.join(unknown)}; remove them or add training images"
        )
    try:
        samples: list[Sample] = make_dataset(
            str(folder), {name: labels[name] for name in here}, IMG_EXTENSIONS
        )
    except FileNotFoundError as error:
        raise DataError(
            f"{folder}: expected images in every subfolder, found otherwise: {error}; "
            "remove the empty folders"
        ) from error
    return samples


def image_files(
    samples: Sequence[Sample], *, size: int = SIZE, resized: int = RESIZED
) -> ImageFiles:
    """Return the lazy images of some samples."""
    return ImageFiles(
        paths=tuple(path for path, _ in samples),
        labels=torch.tensor([label for _, label in samples], dtype=torch.int64),
        size=size,
        resized=resized,
    )
