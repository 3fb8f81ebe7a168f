"""Whether weights are ternary: the scales that make them so, and whether their mask has structure.

Weights are looked at as bit patterns, in which the size of a weight is its pattern without the
sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt, log, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pabzip.seeds.generation import over_ranges

LEAST_RUN = 16
"""Fewer weights than this do not pay for a scale of their own."""

STRUCTURE = 0.004
"""Part of a mask's entropy that its rows, columns and places must save to be worth fitting."""

_SAMPLE = 1 << 24  # weights that are counted, of every so many rows, to find structure


@dataclass(frozen=True, slots=True, eq=False)
class Scales:
    """Scales that make weights ternary.

    Attributes:
        run: successive weights that share one; 0 where each column has one.
        sizes: bit patterns, all above 0; where all weights are 0, that of a neighbor.
    """

    run: int
    sizes: NDArray[Any]


def find_scales(
    bits: NDArray[Any], shape: tuple[int, ...], *, threads: int | None = None
) -> Scales | None:
    """Find the scales of weights that are all 0 or plus or minus one of few.

    Tried in this order, of which the first that fits is taken: one of the tensor; of several rows,
    of a row, and of a group within a row (runs of successive weights, from long to short, of at
    least `LEAST_RUN`); one of each column, along the last dimension.

    Args:
        bits: bit patterns, unsigned, flat.
        shape: of the tensor, two or more dimensions.
        threads: at most so many; None takes every CPU that the process may use.

    Returns:
        None where there are none, or all weights are 0. Infinity and not-a-number count as sizes.
    """
    from pabzip.packing.ternary_kernels import column_sizes, other_size, run_sizes

    sign = 1 << (8 * bits.itemsize - 1)
    first = int(other_size(bits, sign, 0))
    if first < 0:
        return None
    size = int(bits[first]) & (sign - 1)
    differs = int(other_size(bits[: first + (1 << 20)], sign, size))  # a run ends there at last
    if differs < 0:
        fits = over_ranges(lambda a, b: other_size(bits[a:b], sign, size) < 0, bits.size, threads)
        if all(fits):
            return Scales(bits.size, np.full(1, size, bits.dtype))
        differs = int(other_size(bits, sign, size))
    for run in _runs(shape):
        if LEAST_RUN <= run <= differs:
            sizes = np.empty(bits.size // run, dtype=bits.dtype)

            def work(a: int, b: int, run: int = run, sizes: NDArray[Any] = sizes) -> bool:
                return bool(run_sizes(bits[a * run : b * run], sign, run, sizes[a:b]))

            # A few first: what does not fit is told from these.
            if work(0, min(64, sizes.size)) and all(_over_runs(work, sizes.size, run, threads)):
                return Scales(run, _filled(sizes))
    width = shape[-1]
    if bits.size // width >= LEAST_RUN:
        sizes = np.zeros(width, dtype=bits.dtype)
        if column_sizes(bits, sign, sizes):
            return Scales(0, _filled(sizes))
    return None


def _over_runs(work: Any, number: int, run: int, threads: int | None) -> list[Any]:
    """Call ``work`` for ranges of so many runs: `over_ranges`, which goes by single weights."""
    return over_ranges(lambda a, b: work(-(-a // run), -(-b // run)), number * run, threads)


def _runs(shape: tuple[int, ...]) -> list[int]:
    """Return how many successive weights may share a scale, from most to fewest."""
    row = prod(shape[1:])
    of_rows = [row * part for part in _divisors(shape[0]) if part < shape[0]]
    return sorted({*of_rows, *_divisors(row)}, reverse=True)


def _divisors(number: int) -> list[int]:
    """Return all divisors of a number."""
    small = [one for one in range(1, isqrt(number) + 1) if number % one == 0]
    return sorted({*small, *(number // one for one in small)})


def _filled(sizes: NDArray[Any]) -> NDArray[Any]:
    """Give runs without survivors the size of the one before, or the first there is; in place."""
    known = np.flatnonzero(sizes)
    before = np.searchsorted(known, np.arange(sizes.size), side="right") - 1
    return np.asarray(sizes[known[np.maximum(before, 0)]])


def has_structure(bits: NDArray[Any], shape: tuple[int, ...]) -> bool:
    """Return whether rows, columns or places of a mask survive more unequally than by chance.

    Compares the entropy of the mask with what is left of it once the survivors of each row, of each
    column (along the second dimension) and of each place within it are known, less what chance
    alone would give. That is what the ``context`` coder's factors can save.

    Args:
        bits: bit patterns of the weights, unsigned, flat; a mask is where they are not 0.
        shape: of the tensor, two or more dimensions.
    """
    from pabzip.packing.ternary_kernels import count_survivors

    rows, columns, places = shape[0], shape[1], prod(shape[2:])
    step = -(-bits.size // _SAMPLE)
    counted = -(-rows // step)
    survivors = [np.zeros(size, dtype=np.int64) for size in (counted, columns, places)]
    count_survivors(bits, 1 << (8 * bits.itemsize - 1), columns, step, rows, *survivors)
    total = counted * columns * places
    whole = _entropy(survivors[0].sum(), total)
    saved = 0.0
    for found in survivors:
        chance = (found.size - 1) / (2 * log(2))  # mean of the likelihood ratio's chi-squared / 2
        saved += max(0.0, whole - float(_entropy(found, total // found.size).sum()) - chance)
    bits_of_all = whole + float(survivors[0].sum())  # with the signs
    return bool(saved > STRUCTURE * bits_of_all)


def _entropy(found: Any, total: int) -> Any:
    """Return the bits of masks of ``total`` weights with ``found`` survivors each."""
    share = np.asarray(found) / total
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = share * np.log2(share) + (1 - share) * np.log2(1 - share)
    return -total * np.nan_to_num(parts)
