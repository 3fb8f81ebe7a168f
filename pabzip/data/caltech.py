"""Caltech-101 from a local folder, through torchvision."""

from __future__ import annotations

from collections.abc import Sequence

from pabzip.data.augment import RandomResizedCrop
from pabzip.data.download import Root, check_files, dataset_root, reading, torchvision_datasets
from pabzip.data.folders import Sample, image_files
from pabzip.data.images import Splits
from pabzip.data.order import permutation
from pabzip.errors import DataError
from pabzip.registry import register_dataset

_ADDRESS = "https://data.caltech.edu/records/mzrjq-6wc02"
_IMAGES = "101_ObjectCategories"
_SPLIT_SEED = 101
_TEST_SHARE = 5


@register_dataset("caltech101", classes=101, shape=(3, 224, 224), augmented=True)
def load_caltech101(name: str, *, root: Root = None, download: bool = False) -> Splits:
    """Load 8,677 photographs of 101 classes; the background class is left out.

    The dataset has no split of its own. Ours takes every fifth image of a class to test on: those
    whose places come first in a permutation by pabzip's generator, seed 101, stream the label
    (classes sorted by name, images by number). 6,981 train, 1,696 test.

    ``root`` holds the folder ``caltech101/101_ObjectCategories``. Files are decoded on use. Inputs
    are 224x224 pixels, normalized by ImageNet's constants, as the field does.

    Arguments and errors are those of `pabzip.data.load`.

    Source: Fei-Fei, Fergus and Perona 2004, Learning generative visual models from few training
    examples.
    """
    dataset = torchvision_datasets().Caltech101
    folder = dataset_root(root)
    images = folder / "caltech101" / _IMAGES
    if not download:
        check_files(name, folder, {f"caltech101/{_IMAGES}": None})
    with reading(name, _IMAGES, _ADDRESS, folder / "caltech101"):
        read = dataset(folder, download=download)
        samples = [
            (str(images / read.categories[label] / f"image_{number:04d}.jpg"), label)
            for number, label in zip(read.index, read.y, strict=True)
        ]
    if not samples:
        raise DataError(
            f"data 'caltech101': expected images in the folders of {images}, found none; remove "
            f"{images} and fetch it with download=True (--download)"
        )
    train, test = _split(samples, len(read.categories))
    return Splits(
        name=name,
        train=image_files(train),
        test=image_files(test),
        num_classes=len(read.categories),
        augmentation=RandomResizedCrop(),
    )


def _split(samples: Sequence[Sample], classes: int) -> tuple[list[Sample], list[Sample]]:
    """Divide the images of every class, four to train on for one to test on."""
    train: list[Sample] = []
    test: list[Sample] = []
    for label in range(classes):
        own = [sample for sample in samples if sample[1] == label]
        order = permutation(len(own), seed=_SPLIT_SEED, stream=label)
        measured = {int(place) for place in order[: len(own) // _TEST_SHARE]}
        for place, sample in enumerate(own):
            (test if place in measured else train).append(sample)
    return train, test
