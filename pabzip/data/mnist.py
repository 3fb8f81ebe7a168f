"""MNIST and Fashion-MNIST from a local folder, through torchvision."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pabzip.data.augment import RandomCrop
from pabzip.data.download import dataset_root, reading, torchvision_datasets
from pabzip.data.splits import Images, Splits
from pabzip.errors import DataError

_PEAK = 255


@dataclass(frozen=True)
class _Kind:
    """One of the two datasets; the constants are those of its 60,000 training images."""

    class_name: str
    mean: tuple[float]
    std: tuple[float]
    augmentation: RandomCrop


_KINDS = {
    "mnist": _Kind("MNIST", (0.1307,), (0.3081,), RandomCrop(padding=2, mirror=False)),
    "fashion-mnist": _Kind(
        "FashionMNIST", (0.2860,), (0.3530,), RandomCrop(padding=2, mirror=True)
    ),
}


def load_mnist(
    name: str, *, root: str | os.PathLike[str] | None = None, download: bool = False
) -> Splits:
    """Load 60,000 training and 10,000 test images, one channel of 28x28 pixels, 10 classes.

    The files are the four of the dataset's home page, in ``MNIST/raw`` or ``FashionMNIST/raw``
    under ``root``, unpacked or as ``.gz``; the latter are checked by MD5 and unpacked there.

    The augmentation shifts by up to 2 pixels, and mirrors clothes but no digits.

    Args:
        name: ``"mnist"`` or ``"fashion-mnist"``.
        root: see `pabzip.data.load`.
        download: fetch the files into ``root`` where some are missing.

    Raises:
        DataError: files are missing or damaged and ``download`` is off, or fetching failed.
        MissingDependencyError: torchvision is missing or does not match torch.

    Source: LeCun et al. 1998, Gradient-based learning applied to document recognition; Xiao et al.
    2017, Fashion-MNIST. The constants are the field's usual ones.
    """
    kind = _KINDS[name]
    dataset = getattr(torchvision_datasets(), kind.class_name)
    folder = dataset_root(root)
    raw = folder / kind.class_name / "raw"
    # With good archives in place torchvision's download only unpacks them.
    fetch = download or _must_unpack(name, dataset, raw)

    def part(*, train: bool) -> Images:
        with reading(name, "the four files", dataset.mirrors[0], raw):
            read = dataset(folder, train=train, download=fetch)
        return _images(name, read, kind, raw)

    return Splits(
        name=name,
        train=part(train=True),
        test=part(train=False),
        num_classes=10,
        augmentation=kind.augmentation,
    )


def _must_unpack(name: str, dataset: Any, raw: Path) -> bool:
    """Tell whether good archives wait to be unpacked; fail without good files or archives."""
    from torchvision.datasets.utils import check_integrity

    archives = [raw / archive for archive, _ in dataset.resources]
    missing = [archive.stem for archive in archives if not archive.with_suffix("").is_file()]
    if not missing:
        return False
    sums = [md5 for _, md5 in dataset.resources]
    good = [check_integrity(str(file), md5) for file, md5 in zip(archives, sums, strict=True)]
    if all(good):
        return True
    damaged = [
        file.name for file, fine in zip(archives, good, strict=True) if file.is_file() and not fine
    ]
    found = f"{', '.join(missing)} missing"
    found += f"; {', '.join(damaged)} damaged (MD5)" if damaged else ""
    raise DataError(
        f"data {name!r}: expected {', '.join(file.stem for file in archives)} in {raw}, or all "
        f"four with the suffix .gz; found {found}; name the folder above it with root= "
        "(--data-root), or fetch them with download=True (--download)"
    )


def _images(name: str, dataset: Any, kind: _Kind, raw: Path) -> Images:
    """Check what torchvision read, which checks no unpacked file, and add the channel."""
    pixels, labels = dataset.data, dataset.targets
    labeled = labels.ndim == 1 and len(labels) == len(pixels) > 0
    if not labeled or tuple(pixels.shape[1:]) != (28, 28) or int(labels.max()) > 9:
        raise DataError(
            f"data {name!r}: expected images of 28x28 pixels with a label 0 to 9 each in {raw}, "
            f"found images {list(pixels.shape)} and labels {list(labels.shape)}; remove the "
            "folder and fetch the files again with download=True (--download)"
        )
    return Images(pixels[:, None].contiguous(), labels.long(), _PEAK, kind.mean, kind.std)
