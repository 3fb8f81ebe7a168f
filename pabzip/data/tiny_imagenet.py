"""Tiny ImageNet from a local folder: small photographs, decoded into memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pabzip.data.augment import RandomCrop
from pabzip.data.download import Root, check_files, dataset_root, reading, torchvision_datasets
from pabzip.data.folders import Sample, class_names, samples_of
from pabzip.data.image_files import default_workers, open_image, read_ahead
from pabzip.data.images import Images, Splits
from pabzip.errors import DataError
from pabzip.registry import register_dataset

_FOLDER = "tiny-imagenet-200"
_ARCHIVE = "tiny-imagenet-200.zip"
_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
_SIZE = 64
# The field's usual constants, of the 100,000 training images.
_MEAN = (0.4802, 0.4481, 0.3975)
_STD = (0.2770, 0.2691, 0.2821)
_AHEAD = 512  # files decoded ahead of the one that is copied into place
_AGAIN = (
    f"remove the folder and unpack {_ARCHIVE} again, or fetch it with download=True (--download)"
)


@register_dataset("tiny-imagenet", classes=200, shape=(3, 64, 64), augmented=True)
def load_tiny_imagenet(name: str, *, root: Root = None, download: bool = False) -> Splits:
    """Load 100,000 training and 10,000 test images, three channels of 64x64 pixels, 200 classes.

    The test images are those of ``val``, whose labels are known. All are decoded into memory
    (1.4 GB), which takes a minute or so. An archive ``tiny-imagenet-200.zip`` that is in ``root``
    but not yet unpacked is checked by MD5 and unpacked there.

    The augmentation shifts by up to 8 pixels and mirrors: that of CIFAR, for twice the size.

    Arguments and errors are those of `pabzip.data.load`.

    Source: Le and Yang 2015, Tiny ImageNet Visual Recognition Challenge.
    """
    torchvision_datasets()
    folder = dataset_root(root)
    unpacked = folder / _FOLDER
    if not unpacked.is_dir():
        _unpack(folder, download=download)
    classes = class_names(unpacked / "train")
    listed = _read_text(unpacked / "wnids.txt").split()
    if sorted(listed) != classes:
        raise DataError(
            f"data 'tiny-imagenet': expected in {unpacked / 'train'} the {len(listed)} classes of "
            f"wnids.txt, found {len(classes)}; {_AGAIN}"
        )
    return Splits(
        name=name,
        train=_decode(samples_of(unpacked / "train", classes)),
        test=_decode(_annotated(unpacked / "val", classes)),
        num_classes=len(classes),
        augmentation=RandomCrop(padding=8, mirror=True),
    )


def _unpack(folder: Path, *, download: bool) -> None:
    """Unpack the archive, fetched first if that was asked for."""
    from torchvision.datasets.utils import download_and_extract_archive, extract_archive

    if not download:
        check_files("tiny-imagenet", folder, {_FOLDER: None}, {_ARCHIVE: _MD5})
    with reading("tiny-imagenet", _ARCHIVE, _URL, folder):
        if download:
            download_and_extract_archive(_URL, str(folder), filename=_ARCHIVE, md5=_MD5)
        else:
            extract_archive(str(folder / _ARCHIVE), str(folder))


def _read_text(file: Path) -> str:
    """Return what a text file holds."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"data 'tiny-imagenet': expected the text file {file}, found {error}; {_AGAIN}"
        ) from error


def _annotated(folder: Path, classes: Sequence[str]) -> list[Sample]:
    """Return paths and labels of the images that ``val_annotations.txt`` lists."""
    file = folder / "val_annotations.txt"
    labels = {name: label for label, name in enumerate(classes)}
    samples = []
    for number, line in enumerate(_read_text(file).splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in labels:
            raise DataError(
                f"{file}: line {number}: expected an image, a tab and one of the {len(classes)} "
                f"classes, found {line!r}; {_AGAIN}"
            )
        samples.append((str(folder / "images" / fields[0]), labels[fields[1]]))
    return samples


def _decode(samples: Sequence[Sample]) -> Images:
    """Decode files into one tensor, on all cores."""
    from torchvision.transforms.v2 import functional

    def load(path: str) -> torch.Tensor:
        pixels: torch.Tensor = functional.pil_to_tensor(open_image(path))
        if tuple(pixels.shape) != (3, _SIZE, _SIZE):
            found = f"{pixels.shape[2]}x{pixels.shape[1]}"
            raise DataError(f"{path}: expected {_SIZE}x{_SIZE} pixels, found {found}; {_AGAIN}")
        return pixels

    pixels = torch.empty(len(samples), 3, _SIZE, _SIZE, dtype=torch.uint8)
    each = ([path] for path, _ in samples)
    decoded = read_ahead(load, each, ahead=_AHEAD, workers=default_workers())
    for index, (image,) in enumerate(decoded):
        pixels[index] = image
    labels = torch.tensor([label for _, label in samples], dtype=torch.int64)
    return Images(pixels, labels, 255, _MEAN, _STD)
