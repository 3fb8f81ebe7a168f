"""The one seam between what is asked for and what computes it, and where threads are counted."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import SeedError
from pabzip.seeds.spec import InitSpec

_MODULES = {"numpy": "pabzip.seeds.reference", "numba": "pabzip.seeds.cpu"}
BACKENDS = tuple(_MODULES)
"""The backends that make numpy arrays; all give the same bits. The GPU's is `pabzip.seeds.cuda`."""

_GRAIN = 1 << 18  # elements: less than a millisecond of work, not worth a thread of its own


class Backend(Protocol):
    """What a backend module offers: all arrays are one-dimensional and contiguous."""

    def fill_magnitudes(
        self, seed: int, spec: InitSpec, start: int, out: NDArray[np.uint32]
    ) -> None:
        """Write the fixed-point magnitudes of elements ``start`` onwards."""

    def fill_weights(self, seed: int, spec: InitSpec, start: int, out: NDArray[np.float32]) -> None:
        """Write the weights of elements ``start`` onwards."""

    def fill_regenerated(
        self,
        seed: int,
        spec: InitSpec,
        start: int,
        codes: NDArray[np.int8],
        out: NDArray[np.float32],
    ) -> bool:
        """Write the weights under ``codes``; return whether every code was valid."""


def select(name: str) -> Backend:
    """Return the backend called ``name``, imported on first use.

    Raises:
        SeedError: no such backend; the message lists the valid ones.
    """
    if name not in _MODULES:
        raise SeedError(f"backend: expected one of {', '.join(BACKENDS)}, found {name!r}")
    return cast(Backend, import_module(_MODULES[name]))


def thread_count(threads: int | None) -> int:
    """Return the number of threads to use: ``threads``, or the CPUs that this process may use.

    Raises:
        SeedError: ``threads`` is neither None nor an integer of at least 1.
    """
    if threads is None:
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise SeedError(f"threads: expected None or an integer of at least 1, found {threads!r}")
    return threads


def over_ranges(
    work: Callable[[int, int], bool | None], count: int, threads: int | None
) -> list[bool | None]:
    """Call ``work(begin, end)`` for ranges that cover ``count`` elements, on several threads.

    The threads live for this call only, so nothing is shared with the caller's own pools, and a
    fork afterwards is safe. How the work is cut never changes a result.

    Returns:
        What each call returned, in the order of the ranges.
    """
    parts = max(1, min(thread_count(threads), count // _GRAIN))
    bounds = [count * part // parts for part in range(parts + 1)]
    if parts == 1:
        return [work(0, count)]
    with ThreadPoolExecutor(parts, thread_name_prefix="pabzip-seeds") as pool:
        return list(pool.map(work, bounds[:-1], bounds[1:]))
