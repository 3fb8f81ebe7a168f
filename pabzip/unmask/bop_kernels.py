"""Bop's step on a CPU in one pass over memory, compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from pabzip.seeds.compiled import compiled


def _fused_code(context: Any, a: Any, b: Any, c: Any) -> Any:
    """Tell numba how ``a * b + c`` is computed with one rounding."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.fma(*values)

    return types.float32(types.float32, types.float32, types.float32), generate


_fused: Any = intrinsic(_fused_code)
# torch's vectorized update rounds once, too; so a kernel's step and a step by lists are the same.


@compiled
def bop_step(
    weights: NDArray[np.float32],
    averages: NDArray[np.float32],
    gradients: NDArray[np.float32],
    initial_signs: NDArray[np.int8] | None,
    keep: np.float32,
    rate: np.float32,
    threshold: np.float32,
    pull: np.float32,
) -> int:
    """Take equations (5) and (6) for one flat tensor, in place; returns the number of flips.

    ``keep`` is 1 - rate, rounded from float64; ``threshold`` the least average that flips, so the
    smallest positive number stands for 0. Each weight is pulled back to its initial sign by
    ``pull``, half of what a flip costs in units of the loss. For plain Bop the initial signs are
    None: numba compiles that apart, without the pull.
    """
    flips = 0
    for at in range(weights.size):
        average = _fused(rate, gradients[at], keep * averages[at])
        averages[at] = average
        weight = weights[at]
        asks = average
        if initial_signs is not None:
            asks -= pull / abs(weight) * np.float32(initial_signs[at])
        agreed = asks if weight > 0 else -asks
        flip = (agreed >= threshold) & ((weight > 0) | (weight < 0))
        weights[at] = -weight if flip else weight
        flips += flip
    return flips


@compiled
def count_flipped(weights: NDArray[np.float32], initial_signs: NDArray[np.int8]) -> tuple[int, int]:
    """Return how many survivors do not have their initial sign, and how many there are."""
    flipped, survivors = 0, 0
    for at in range(weights.size):
        weight, sign = weights[at], initial_signs[at]
        survivors += weight != 0
        flipped += (weight > 0) & (sign < 0) | (weight < 0) & (sign > 0)
    return flipped, survivors
