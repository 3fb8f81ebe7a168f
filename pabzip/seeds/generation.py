"""Weights from a seed, through the backend that fits the device.

Everything here is exact: the result is a function of seed, spec and place alone, to the last bit,
whatever the backend, the number of threads, the machine, or the range that is asked for.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any, Protocol, SupportsIndex, cast

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import SeedError
from pabzip.seeds.spec import InitSpec, check_seed

_MODULES = {"numpy": "pabzip.seeds.reference", "numba": "pabzip.seeds.kernels"}
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


MAX_ELEMENTS = 2**63 - 1


def magnitudes(
    seed: int,
    spec: InitSpec,
    start: int,
    stop: int,
    *,
    backend: str = "numba",
    threads: int | None = None,
) -> NDArray[np.uint32]:
    """Return the magnitudes of elements ``start`` to ``stop``, before scaling, as integers.

    Args:
        seed: ``0 <= seed < 2**64``.
        spec: what the tensor is drawn from.
        start: first element, in the tensor's row-major order.
        stop: one past the last, ``start <= stop < 2**63``.
        backend: ``"numba"`` or ``"numpy"``.
        threads: at most so many; None takes every CPU that the process may use.

    Returns:
        uint32, shape ``(stop - start,)``, each at least 1. The absolute weight is
        ``float32(magnitude) * spec.factor``: 28 bits after the binary point for ``normal``, 32 for
        ``uniform``, none for ``signed_constant``.

    Raises:
        SeedError: an argument out of range, or an unknown backend.
    """
    seed, (start, count) = check_seed(seed), check_range(start, stop)
    engine = select(backend)
    out = np.empty(count, dtype=np.uint32)

    def work(begin: int, end: int) -> None:
        engine.fill_magnitudes(seed, spec, start + begin, out[begin:end])

    over_ranges(work, count, threads)
    return out


def weights(
    seed: int,
    spec: InitSpec,
    start: int,
    stop: int,
    *,
    backend: str = "numba",
    threads: int | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Return the weights of elements ``start`` to ``stop`` as the seed drew them (every code +1).

    Arguments are as for `magnitudes`, and ``out`` is where to write: float32, C-contiguous,
    ``stop - start`` elements in any shape.

    Returns:
        ``out``, or a new float32 array of shape ``(stop - start,)``. No element is 0.

    Raises:
        SeedError: an argument out of range, an unknown backend, or an ``out`` that does not fit.
    """
    seed, (start, count) = check_seed(seed), check_range(start, stop)
    engine = select(backend)
    result = np.empty(count, dtype=np.float32) if out is None else _check_out(out, count)
    flat = result.reshape(-1)

    def work(begin: int, end: int) -> None:
        engine.fill_weights(seed, spec, start + begin, flat[begin:end])

    over_ranges(work, count, threads)
    return result


def regenerate(
    seed: int,
    spec: InitSpec,
    codes: NDArray[np.int8],
    *,
    start: int = 0,
    backend: str = "numba",
    threads: int | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Return the weights that ``codes`` make of the seed's: kept (+1), flipped (-1), pruned (0).

    Args:
        seed: ``0 <= seed < 2**64``.
        spec: what the tensor is drawn from.
        codes: int8, any shape, values 0, +1 and -1.
        start: place of the first code in its tensor's row-major order.
        backend: ``"numba"`` or ``"numpy"``.
        threads: at most so many; None takes every CPU that the process may use.
        out: where to write: float32, C-contiguous, as many elements as ``codes``.

    Returns:
        ``out``, or a new float32 array of the shape of ``codes``. Pruned weights are +0.0.

    Raises:
        SeedError: an argument out of range, an unknown backend, codes that are not 0, +1 or -1,
            or an ``out`` that does not fit.
    """
    if not isinstance(codes, np.ndarray) or codes.dtype != np.int8:
        raise SeedError(f"codes: expected an int8 array, found {_kind(codes)}")
    seed, (start, _) = check_seed(seed), check_range(start, start + codes.size)
    engine = select(backend)
    result = np.empty(codes.shape, np.float32) if out is None else _check_out(out, codes.size)
    flat, flat_codes = result.reshape(-1), np.ascontiguousarray(codes).reshape(-1)

    def work(begin: int, end: int) -> bool:
        return engine.fill_regenerated(
            seed, spec, start + begin, flat_codes[begin:end], flat[begin:end]
        )

    if not all(over_ranges(work, codes.size, threads)):
        count = np.count_nonzero((flat_codes < -1) | (flat_codes > 1))
        raise SeedError(f"codes: expected only 0, +1 and -1, found {count} other values")
    return result


def check_range(start: SupportsIndex, stop: SupportsIndex) -> tuple[int, int]:
    """Return ``start`` and ``stop - start`` as plain integers, after a check of the range."""
    try:
        first, last = operator.index(start), operator.index(stop)
    except TypeError:
        first, last = -1, -1
    if not 0 <= first <= last <= MAX_ELEMENTS:
        raise SeedError(
            f"range: expected integers 0 <= start <= stop < 2**63, "
            f"found start={start!r}, stop={stop!r}"
        )
    return first, last - first


def _check_out(out: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return ``out`` if results can be written straight into it."""
    if (
        not isinstance(out, np.ndarray)
        or out.dtype != np.float32
        or out.size != count
        or not out.flags.c_contiguous
        or not out.flags.writeable
    ):
        raise SeedError(
            f"out: expected a writable C-contiguous float32 array of {count} elements, "
            f"found {_kind(out)}"
        )
    return out


def _kind(value: Any) -> str:
    """Describe a wrong argument in a message."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} array of shape {value.shape}"
    return type(value).__name__
