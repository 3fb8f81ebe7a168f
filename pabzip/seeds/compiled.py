"""The decorator of pabzip's numba kernels: cached on disk, free of the GIL, strict arithmetic."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, cast

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile ``function`` with numba on its first call, and keep the machine code on disk.

    Floating-point arithmetic stays as written (no ``fastmath``: nothing is fused or reordered).
    Where no folder can be written, not even the user's cache, the code is compiled once a process.

    Numba recompiles a kernel when its own file changes, not when a kernel that it calls does:
    whoever edits a shared kernel removes the ``*.nbi`` files of ``__pycache__``.
    """
    dispatcher: Any = numba.njit(nogil=True, error_model="numpy")(function)
    with contextlib.suppress(RuntimeError):  # numba finds no folder that it can write
        dispatcher.enable_caching()
    return cast(Callable[..., Any], dispatcher)
