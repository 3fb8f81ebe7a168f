"""Datasets by name: what is known of each before it is read, and how it is loaded.

A dataset registers its loader where it is defined::

    @register_dataset("cifar10", classes=10, shape=(3, 32, 32), augmented=True)
    def load_cifar10(name, *, root=None, download=False) -> Splits: ...

``classes`` is the number of labels and ``shape`` channels, height and width of an input; a dataset
whose files alone tell gives neither. ``augmented`` says that its `Splits` come with an
augmentation, which is then used unless a recipe says otherwise. The loader is called with the
arguments of `load`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pabzip._optional import require
from pabzip.errors import DataError
from pabzip.registry import DATASETS

if TYPE_CHECKING:
    from pabzip.data.images import Splits


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


def names() -> tuple[str, ...]:
    """Return the names of all datasets."""
    return DATASETS.names


def geometry(name: str) -> Geometry:
    """Return what a network must fit to learn a dataset; nothing is read from disk.

    Raises:
        DataError: no such dataset, or one that only its files tell (a folder of images).
    """
    facts = DATASETS.facts(name)
    if "shape" not in facts:
        raise DataError(
            f"data: expected a dataset of known classes and size, found {name!r}; load it and ask "
            "its num_classes and input_shape"
        )
    channels, size, _ = facts["shape"]
    return Geometry(facts["classes"], channels, size)


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
        MissingDependencyError: torch, scikit-learn, scipy or torchvision is missing, or torchvision
            does not match torch.
    """
    require("torch", extra="train", purpose="pabzip.data.load")
    registered = name
    if name not in DATASETS:
        if not Path(name).expanduser().is_dir():
            DATASETS.check(name, also="the path of a folder")
        if root is not None:
            raise DataError(
                f"data: expected 'folder' with a root, or a path alone, found {name!r} and the "
                f"root {str(root)!r}; leave one of them out"
            )
        registered, root = "folder", name
    splits: Splits = DATASETS.get(registered)(name, root=root, download=download)
    return splits
