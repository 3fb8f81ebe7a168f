"""What the seeds leave alone: imports that nobody asked for, and the caller's global state."""

from __future__ import annotations

import random
import subprocess
import sys
from functools import partial
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import pytest

from pabzip.seeds import InitSpec, compiled, regenerate, weights
from pabzip.seeds.generation import over_ranges


def test_import_loads_numpy_alone() -> None:
    code = (
        "import sys, pabzip.seeds\n"
        "heavy = {'numba', 'llvmlite', 'scipy', 'torch', 'triton', 'mpmath'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert process.stdout.strip() == "[]"


def _global_state() -> tuple[Any, ...]:
    """Return what a caller may have set: numpy's and Python's generators, threads, error modes."""
    _, keys, position, *_ = np.random.get_state(legacy=True)  # noqa: NPY002
    state = (np.asarray(keys).tobytes(), position, random.getstate())
    return *state, numba.get_num_threads(), np.geterr()


def test_global_state_is_left_alone() -> None:
    before = _global_state()
    spec = InitSpec("normal", 1.0, 0)
    drawn = weights(0, spec, 0, 2**19 + 1, threads=2)
    regenerate(0, spec, np.sign(drawn).astype(np.int8), threads=2)
    assert _global_state() == before


def _note(seen: list[tuple[int, int]], begin: int, end: int) -> None:
    """Write down a range."""
    seen.append((begin, end))


def test_ranges_cover_everything_once_whatever_the_threads() -> None:
    for count in (0, 1, 2**18, 2**20 + 7):
        for threads in (1, 3, 64):
            seen: list[tuple[int, int]] = []
            over_ranges(partial(_note, seen), count, threads)
            seen.sort()
            assert seen[0][0] == 0
            assert seen[-1][1] == count
            assert all(a[1] == b[0] for a, b in pairwise(seen))


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    def work(begin: int, _end: int) -> None:
        if begin:
            raise ValueError("second range")

    with pytest.raises(ValueError, match="second range"):
        over_ranges(work, 2**20, 2)


def test_kernels_compile_where_no_cache_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: object) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(numba.core.registry.CPUDispatcher, "enable_caching", refuse)
    double: Any = compiled.compiled(lambda x: x + x)
    assert double(21) == 42
