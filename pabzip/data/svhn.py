"""SVHN, house numbers from street views, from a local folder through torchvision."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from pabzip._optional import require
from pabzip.data.augment import RandomCrop
from pabzip.data.download import dataset_root, reading, torchvision_datasets
from pabzip.data.splits import Images, Splits
from pabzip.errors import DataError

_PEAK = 255
# The field's usual constants, of the 73,257 training images.
_MEAN = (0.4377, 0.4438, 0.4728)
_STD = (0.1980, 0.2010, 0.1970)


def load_svhn(*, root: str | os.PathLike[str] | None = None, download: bool = False) -> Splits:
    """Load 73,257 training and 26,032 test images, three channels of 32x32 pixels, 10 classes.

    The files are ``train_32x32.mat`` and ``test_32x32.mat`` of the dataset's home page, checked by
    MD5 before they are read; the label of the digit 0 is 0. The 531,131 extra images are not used.

    The augmentation shifts by up to 4 pixels and mirrors nothing: a mirrored digit is no digit.

    Args:
        root: the folder that holds the two files; see `pabzip.data.load`.
        download: fetch what is missing or damaged into ``root``.

    Raises:
        DataError: files are missing or damaged and ``download`` is off, or fetching failed.
        MissingDependencyError: torchvision or scipy is missing, or torchvision does not match
            torch.

    Source: Netzer et al. 2011, Reading Digits in Natural Images with Unsupervised Feature Learning.
    """
    require("scipy", extra="train", purpose="data 'svhn'")
    dataset = torchvision_datasets().SVHN
    folder = dataset_root(root)
    if not download:
        _check_files(dataset, folder)

    def part(split: str) -> Images:
        url, file, _ = dataset.split_list[split]
        with reading("svhn", file, url, folder):
            read = dataset(folder, split=split, download=download)
        pixels = torch.from_numpy(read.data).contiguous()
        return Images(pixels, torch.from_numpy(read.labels), _PEAK, _MEAN, _STD)

    return Splits(
        name="svhn",
        train=part("train"),
        test=part("test"),
        num_classes=10,
        augmentation=RandomCrop(padding=4, mirror=False),
    )


def _check_files(dataset: Any, folder: Path) -> None:
    """Fail, naming what is wrong, unless both files are there and good."""
    from torchvision.datasets.utils import check_integrity

    found = []
    for split in ("train", "test"):
        _, file, md5 = dataset.split_list[split]
        if not (folder / file).is_file():
            found.append(f"{file} missing")
        elif not check_integrity(str(folder / file), md5):
            found.append(f"{file} damaged (MD5)")
    if found:
        raise DataError(
            f"data 'svhn': expected train_32x32.mat and test_32x32.mat in {folder}, found "
            f"{', '.join(found)}; name the folder that holds them with root= (--data-root), or "
            "fetch them with download=True (--download)"
        )
