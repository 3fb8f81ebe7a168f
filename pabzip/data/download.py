"""The files of datasets: where they lie, whether they are whole, and how torchvision reads them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pabzip._optional import torchvision_part
from pabzip.errors import DataError

Root = str | os.PathLike[str] | None
"""The folder of a dataset, as in `pabzip.data.load`."""


def dataset_root(root: Root) -> Path:
    """Return ``root``; by default ``$XDG_CACHE_HOME/pabzip`` or ``~/.cache/pabzip``."""
    if root is not None:
        return Path(root).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "pabzip"


def torchvision_datasets() -> Any:
    """Return the module ``torchvision.datasets``.

    Raises:
        MissingDependencyError: torchvision is missing or does not match torch.
    """
    return torchvision_part("datasets", purpose="data")


def check_files(
    name: str,
    root: Path,
    files: Mapping[str, str | None],
    archives: Mapping[str, str] | None = None,
) -> bool:
    """Check the files of a dataset; return whether they have yet to be unpacked from archives.

    ``files`` and ``archives`` are paths below ``root``, with the MD5 of each; None for a folder, or
    for a file that only has to be there.

    Raises:
        DataError: some files are missing or damaged, and so are the archives; names them.
    """
    from torchvision.datasets.utils import check_integrity

    def faults(paths: Mapping[str, str | None]) -> list[str]:
        missing = [path for path in paths if not (root / path).exists()]
        damaged = [
            path
            for path, md5 in paths.items()
            if md5 and path not in missing and not check_integrity(str(root / path), md5)
        ]
        return [f"{path} missing" for path in missing] + [
            f"{path} damaged (MD5)" for path in damaged
        ]

    archives = archives or {}
    found = faults(files)
    if not found:
        return False
    if archives and not faults(archives):
        return True
    there = any((root / path).exists() for path in (*files, *archives))
    expected = ", ".join(files) + (f", or {', '.join(archives)}" if archives else "")
    raise DataError(
        f"data {name!r}: expected in {root} {expected}, found "
        f"{', '.join(found + faults(archives)) if there else 'none of them'}; name the folder that "
        "holds them with root= (--data-root), or fetch them with download=True (--download)"
    )


@contextlib.contextmanager
def reading(name: str, what: str, source: str, folder: Path) -> Iterator[None]:
    """Turn whatever goes wrong while torchvision fetches or reads into one `DataError`.

    It names the dataset, ``what`` is read (such as a file), the address ``source``, the folder
    where it lies or is to lie, and what went wrong.
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
