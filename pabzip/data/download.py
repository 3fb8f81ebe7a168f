"""Where datasets lie, and how torchvision fetches them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pabzip._optional import torchvision_part
from pabzip.errors import DataError


def default_root() -> Path:
    """Return where downloads go: ``$XDG_CACHE_HOME/pabzip`` or ``~/.cache/pabzip``."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "pabzip"


def dataset_root(root: str | os.PathLike[str] | None) -> Path:
    """Return ``root`` as a path, or where downloads go if it is None."""
    return default_root() if root is None else Path(root).expanduser()


def torchvision_datasets() -> Any:
    """Return the module ``torchvision.datasets``.

    Raises:
        MissingDependencyError: torchvision is missing or does not match torch.
    """
    return torchvision_part("datasets", purpose="data")


@contextlib.contextmanager
def reading(name: str, what: str, source: str, folder: Path) -> Iterator[None]:
    """Turn whatever goes wrong while torchvision fetches or reads into one error.

    Args:
        name: of the dataset.
        what: is read, such as a file's name.
        source: address that it is fetched from.
        folder: where it lies or is to lie.

    Raises:
        DataError: names them, and what went wrong.
    """
    try:
        yield
    except Exception as error:  # torchvision promises no kinds: network, tar, pickle, MD5, disk
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            f"data {name!r}: expected {what} to be fetched from {source} or read in {folder}, "
            f"found {problem}; check the network and the folder, or put "
            f"{what} into {folder} by hand"
        ) from error
