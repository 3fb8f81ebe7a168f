"""Datasets by name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pabzip.errors import DataError
from pabzip.registry import DATASETS

if TYPE_CHECKING:
    from pabzip.data.splits import Splits


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a network must fit.

    Attributes:
        num_classes: number of labels.
        in_channels: channels of an input.
        image_size: height and width of an input in pixels.
    """

    num_classes: int
    in_channels: int
    image_size: int

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an input."""
        return self.in_channels, self.image_size, self.image_size


GEOMETRIES = {
    "digits": Geometry(10, 1, 8),
    "cluttered-digits": Geometry(10, 3, 32),
    "cifar10": Geometry(10, 3, 32),
    "cifar100": Geometry(100, 3, 32),
    "mnist": Geometry(10, 1, 28),
    "fashion-mnist": Geometry(10, 1, 28),
    "svhn": Geometry(10, 3, 32),
    "tiny-imagenet": Geometry(200, 3, 64),
    "caltech101": Geometry(101, 3, 224),
    "imagenet": Geometry(1000, 3, 224),
}
"""By name of the dataset; an image folder's is known once it is read."""


def geometry(name: str) -> Geometry:
    """Return the geometry of a published dataset; nothing is read from disk.

    Raises:
        DataError: no such dataset, or one whose geometry is its files' (a folder).
    """
    found = GEOMETRIES.get(name)
    if found is None:
        raise DataError(f"data: expected one of {', '.join(GEOMETRIES)}, found {name!r}")
    return found


_NAMES = (
    "digits",
    "cluttered-digits",
    "cifar10",
    "cifar100",
    "mnist",
    "fashion-mnist",
    "svhn",
    "tiny-imagenet",
    "caltech101",
    "imagenet",
    "folder",
)


def names() -> tuple[str, ...]:
    """Return the names of all datasets."""
    return _NAMES


def load(
    name: str, *, root: str | os.PathLike[str] | None = None, download: bool = False
) -> Splits:
    """Load a dataset.

    Small sets are read into memory. Caltech-101, ImageNet and folders are lists of files that are
    decoded on use; `pabzip.data.batches` walks through either.

    Args:
        name: one of `names`, or the path of a folder. ``"digits"`` comes with scikit-learn and
            needs no folder, and ``"cluttered-digits"`` is painted from it. A path, or ``"folder"``
            with a ``root``, loads the images of that folder; see `pabzip.data.folders.load_folder`.
        root: the folder that holds, or is to hold, downloaded datasets, by default
            ``$XDG_CACHE_HOME/pabzip`` or ``~/.cache/pabzip``. For ``"imagenet"`` and ``"folder"``,
            which are never fetched, the folder that holds ``train``.
        download: fetch what is missing. Nothing is ever fetched without it.

    Returns:
        Training and test images, with the constants that normalize them.

    Raises:
        DataError: no such dataset, or its files are missing, damaged or could not be fetched.
        MissingDependencyError: scikit-learn, scipy or torchvision is missing, or torchvision does
            not match torch.
    """
    match name:
        case "digits":
            from pabzip.data.digits import load_digits

            return load_digits()
        case "cluttered-digits":
            from pabzip.data.cluttered_digits import load_cluttered_digits

            return load_cluttered_digits()
        case "cifar10" | "cifar100":
            from pabzip.data.cifar import load_cifar

            return load_cifar(name, root=root, download=download)
        case "mnist" | "fashion-mnist":
            from pabzip.data.mnist import load_mnist

            return load_mnist(name, root=root, download=download)
        case "svhn":
            from pabzip.data.svhn import load_svhn

            return load_svhn(root=root, download=download)
        case "tiny-imagenet":
            from pabzip.data.tiny_imagenet import load_tiny_imagenet

            return load_tiny_imagenet(root=root, download=download)
        case "caltech101":
            from pabzip.data.caltech import load_caltech101

            return load_caltech101(root=root, download=download)
        case "imagenet":
            from pabzip.data.folders import load_imagenet

            return load_imagenet(root)
        case "folder":
            from pabzip.data.folders import load_folder

            return load_folder(root)
    if name in DATASETS:
        splits: Splits = DATASETS.get(name)(name, root=root, download=download)
        return splits
    if Path(name).expanduser().is_dir():
        if root is not None:
            raise DataError(
                f"data: expected 'folder' with a root, or a path alone, found {name!r} and the "
                f"root {str(root)!r}; leave one of them out"
            )
        from pabzip.data.folders import load_folder

        return load_folder(name, name=name)
    raise DataError(
        f"data: expected one of {', '.join(_NAMES)}, or the path of a folder, found {name!r}"
    )
