"""The decorator of pabzip's numba kernels: cached on disk, free of the GIL, strict arithmetic."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import numba

_IMPORT = re.compile(rb"^(?:from (pabzip[\w.]*) import (\([^)]*\)|.*)|import (pabzip[\w.]+))", re.M)
_NOT_IN_FILE_NAMES = str.maketrans("", "", "<>")


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile ``function`` with numba on its first call, and keep the machine code on disk.

    Floating-point arithmetic stays as written (no ``fastmath``: nothing is fused or reordered).

    Numba itself recompiles a kernel when the kernel's own file changes. Here the cached code is
    also stamped with the text of every module of pabzip that this file imports, directly or not:
    kernels that it calls and constants that it reads are part of its machine code. New code takes
    the place of the old on disk.

    Where no folder can be written, not even the user's cache, or numba keeps its cache in another
    way than it does now, the code is compiled once a process.
    """
    dispatcher: Any = _dispatcher(function)
    try:
        dispatcher.enable_caching()
        numbas = dispatcher._cache
        stamp = source_digest(function.__module__)
        # Without the line number that numba puts there: a kernel that moves keeps its files.
        place = f"{function.__module__}.{function.__qualname__}".translate(_NOT_IN_FILE_NAMES)
        name = f"{place}.{sys.implementation.cache_tag}"
        file = type(numbas._cache_file)(numbas.cache_path, name, stamp)
        numbas._cache_file = _StampedFile(file, stamp)
    except (RuntimeError, OSError, AttributeError, TypeError):
        dispatcher = _dispatcher(function)
    return cast(Callable[..., Any], dispatcher)


def _dispatcher(function: Callable[..., Any]) -> Any:
    """Return numba's compiler of one function, without a cache."""
    return numba.njit(nogil=True, error_model="numpy")(function)


def source_digest(module: str) -> str:
    """Return a SHA-256 of a module's text and of the texts of all it imports of pabzip.

    Args:
        module: dotted name of a module that is imported, or is being imported by now.

    Raises:
        OSError: a text cannot be read.
        AttributeError: ``module`` has no file.
    """
    digests: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        # A name that is imported from a module need not be a module itself.
        if name in digests or (name != module and name not in sys.modules):
            continue
        file = str(sys.modules[name].__file__)
        status = os.stat(file)
        digests[name], imported = _read(file, status.st_mtime_ns, status.st_size)
        waiting += imported
    return hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()


@cache
def _read(file: str, _changed: int, _size: int) -> tuple[str, list[str]]:
    """Return the SHA-256 of a module's text, and the names that may be modules it imports.

    Time of change and size are there so that a module that is edited and reloaded is read again.
    """
    text = Path(file).read_bytes()
    found = []
    for source, names, whole in _IMPORT.findall(text):
        package = (source or whole).decode()
        found += [package, *(f"{package}.{name.decode()}" for name in re.findall(rb"\w+", names))]
    return hashlib.sha256(text).hexdigest(), found


class _StampedFile:
    """The files of one kernel's cache, with the stamp in the data as well as in the index.

    Numba writes the index before the data. A process that reads in between, or after one that was
    killed there, would find old machine code behind the new index.

    Args:
        file: numba's ``IndexDataCacheFile``.
        stamp: of the source.
    """

    def __init__(self, file: Any, stamp: str):
        self._file, self._stamp = file, stamp

    def flush(self) -> None:
        """Forget what is cached."""
        self._file.flush()

    def save(self, key: Any, data: Any) -> None:
        """Write the machine code of one signature."""
        self._file.save(key, (self._stamp, data))

    def load(self, key: Any) -> Any:
        """Return the machine code of one signature; None if it must be compiled."""
        try:
            stamp, data = self._file.load(key) or (None, None)
        except (AttributeError, ImportError):  # of older source, whose types are gone
            self._file.flush()
            return None
        return data if stamp == self._stamp else None
