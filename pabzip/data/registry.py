"""Datasets by name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pabzip.errors import DataError

if TYPE_CHECKING:
    from pabzip.data.splits import Splits

_NAMES = ("digits", "cluttered-digits", "cifar10", "cifar100")


def names() -> tuple[str, ...]:
    """Return the names of all datasets."""
    return _NAMES


def load(
    name: str, *, root: str | os.PathLike[str] | None = None, download: bool = False
) -> Splits:
    """Load a dataset into memory.

    Args:
        name: one of `names`. ``"digits"`` comes with scikit-learn and needs no folder, and
            ``"cluttered-digits"`` is painted from it.
        root: the folder that holds, or is to hold, downloaded datasets; by default
            ``$XDG_CACHE_HOME/pabzip`` or ``~/.cache/pabzip``.
        download: fetch what is missing. Nothing is ever fetched without it.

    Returns:
        Training and test images as ``uint8`` tensors, with the constants that normalise them.

    Raises:
        DataError: no such dataset, or its files are missing, damaged or could not be fetched.
        MissingDependencyError: scikit-learn or torchvision is missing, or torchvision does not
            match torch.
    """
    if name == "digits":
        from pabzip.data.digits import load_digits

        return load_digits()
    if name == "cluttered-digits":
        from pabzip.data.cluttered_digits import load_cluttered_digits

        return load_cluttered_digits()
    if name in ("cifar10", "cifar100"):
        from pabzip.data.cifar import load_cifar

        return load_cifar(name, root=root, download=download)
    raise DataError(f"data: expected one of {', '.join(_NAMES)}, found {name!r}")
