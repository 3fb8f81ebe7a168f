"""CIFAR-10 and CIFAR-100 from a local folder, through torchvision."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pabzip.data.augment import crop_and_flip
from pabzip.data.download import dataset_root, reading, torchvision_datasets
from pabzip.data.splits import Images, Splits
from pabzip.errors import DataError

_PEAK = 255


@dataclass(frozen=True)
class _Kind:
    """One of the two datasets; the constants are those of its 50,000 training images."""

    class_name: str
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_KINDS = {
    "cifar10": _Kind("CIFAR10", 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": _Kind("CIFAR100", 100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def load_cifar(
    name: str, *, root: str | os.PathLike[str] | None = None, download: bool = False
) -> Splits:
    """Load 50,000 training and 10,000 test images, three channels of 32x32 pixels.

    The files are the "python version" of the dataset's home page, checked by MD5 before they are
    read. An archive that is in ``root`` but not yet unpacked is unpacked there.

    Args:
        name: ``"cifar10"`` or ``"cifar100"`` (fine labels).
        root: the folder that holds the archive or the unpacked folder; see `pabzip.data.load`.
        download: fetch the archive into ``root`` where files are missing or damaged.

    Raises:
        DataError: files are missing or damaged and ``download`` is off, or fetching failed.
        MissingDependencyError: torchvision is missing or does not match torch.

    Source: Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.
    """
    kind = _KINDS[name]
    dataset = getattr(torchvision_datasets(), kind.class_name)
    folder = dataset_root(root)
    # With a good archive in place torchvision's download only unpacks it.
    fetch = download or _must_unpack(name, dataset, folder)
    train = _read(name, dataset, folder, train=True, download=fetch)
    test = _read(name, dataset, folder, train=False, download=False)
    return Splits(
        name=name,
        train=_images(train, kind),
        test=_images(test, kind),
        num_classes=kind.num_classes,
        augmentation=crop_and_flip,
    )


def _must_unpack(name: str, dataset: Any, folder: Path) -> bool:
    """Tell whether a good archive waits to be unpacked; fail without good files or archive."""
    from torchvision.datasets.utils import check_integrity

    unpacked = folder / dataset.base_folder
    files = [*dataset.train_list, *dataset.test_list]
    files.append([dataset.meta["filename"], dataset.meta["md5"]])
    missing = [file for file, _ in files if not (unpacked / file).is_file()]
    damaged = [
        file
        for file, md5 in files
        if file not in missing and not check_integrity(str(unpacked / file), md5)
    ]
    if not (missing or damaged):
        return False
    archive = folder / dataset.filename
    if check_integrity(str(archive), dataset.tgz_md5):
        return True
    expected = ", ".join(file for file, _ in files)
    found = [f"{', '.join(missing)} missing"] if missing else []
    found += [f"{', '.join(damaged)} damaged (MD5)"] if damaged else []
    found += [f"the archive {archive} damaged (MD5)"] if archive.is_file() else []
    raise DataError(
        f"data {name!r}: expected the files {expected} in {unpacked}, or the archive {archive}; "
        f"found {'; '.join(found)}; name the folder that holds them with root= "
        "(--data-root), or fetch them with download=True (--download)"
    )


def _read(name: str, dataset: Any, folder: Path, *, train: bool, download: bool) -> Any:
    """Read one part through torchvision, which checks and, if told to, fetches and unpacks."""
    with reading(name, dataset.filename, dataset.url, folder):
        return dataset(folder, train=train, download=download)


def _images(dataset: Any, kind: _Kind) -> Images:
    """Copy a torchvision dataset, channels last, into tensors, channels first."""
    pixels = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(dataset.targets, dtype=torch.int64)
    return Images(pixels, labels, _PEAK, kind.mean, kind.std)
