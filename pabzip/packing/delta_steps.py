"""The step sizes that a fine-tuned tensor allows: as intervals, and numbers to try from these.

Where a fine-tune moved elements by whole numbers of steps, each bounds the size of a step: its sum
with the base's element must round to what is there. The intervals of all elements of a tensor, or
of a row, have a common part, or there is no such size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pabzip.formats import DENSE_TYPES, HALF_TYPES
from pabzip.formats.delta_changes import Change, ordered, working_type
from pabzip.formats.dense import from_stored
from pabzip.seeds.compiled import compiled

Pair = tuple[NDArray[Any], NDArray[Any]]
"""The elements of the base's tensor, flat, and those of the tuned one."""


def intervals(
    pair: Pair, changed: NDArray[np.int64], dtype: str, change: Change, size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return how far changed elements are from the base's: at least, at most, in float64.

    Any distance between the two rounds to the tuned element, up to other roundings on the way,
    which widen it a little. The third array has the first of them of each row of ``size`` elements,
    and their number at the end. ``changed`` are places of elements, ascending.
    """
    work = working_type(dtype)
    base, tuned = (from_stored(one[changed], work, dtype).astype(np.float64) for one in pair)
    moved = base != tuned  # -0.0 that became +0.0 tells nothing
    if not moved.all():
        base, tuned, changed = base[moved], tuned[moved], changed[moved]
    above, below = (_neighbor(pair[1][changed], dtype, way) for way in (1, -1))
    above, below = tuned + (above - tuned) / 2, tuned + (below - tuned) / 2
    rising = tuned > base
    highs = np.where(rising, above - base, base - below)
    lows = np.where(rising, below - base, base - above)
    bits = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}[change.product]
    slack = np.abs(tuned) * (2.0**-24 if dtype in HALF_TYPES else 2.0**-51)
    slack += highs * 2.0 ** -(bits + 1)
    offsets = np.searchsorted(changed, np.arange(0, pair[0].size + 1, size))
    return np.maximum(lows - slack, 0.0), highs + slack, offsets


def _neighbor(values: NDArray[Any], dtype: str, way: int) -> NDArray[np.float64]:
    """Return the next value of ``dtype`` above (1) or below (-1), as float64; 2^n at the ends."""
    patterns = ordered(values, dtype)
    patterns = patterns + patterns.dtype.type(1) if way > 0 else patterns - patterns.dtype.type(1)
    top = patterns.dtype.type(1 << (8 * patterns.itemsize - 1))
    bits = np.where(patterns & top, patterns ^ top, ~patterns)
    wide = from_stored(bits.view(DENSE_TYPES[dtype].numpy), working_type(dtype), dtype)
    with np.errstate(all="ignore"):
        found = wide.astype(np.float64)
        own = from_stored(values, working_type(dtype), dtype).astype(np.float64)
    return np.where(np.isfinite(found), found, own + way * np.abs(own) / 2)


@compiled
def narrow(lows, highs, low, high, most):  # type: ignore[no-untyped-def]
    """Return the part of an interval of step sizes that all elements allow; -1 and -1 for none.

    Each element is 1 to ``most`` steps away, between ``lows`` and ``highs``. Where one number of
    steps alone is possible, it narrows the interval; a second turn tests what came before that.
    """
    for _ in range(2):
        for at in range(lows.size):
            least = max(1.0, np.ceil(lows[at] / high))
            top = float(most)
            if low > 0:
                top = min(top, np.floor(highs[at] / low))
            if least > top:
                return -1.0, -1.0
            if least == top:
                low = max(low, lows[at] / least)
                high = min(high, highs[at] / least)
                if low > high:
                    return -1.0, -1.0
    return low, high


@compiled
def step_sizes(lows, highs, offsets, most, found):  # type: ignore[no-untyped-def]
    """Write intervals of step sizes, the largest first; return whether every row has one.

    Args:
        lows: of all rows, how far the elements are at least from the base's.
        highs: likewise at most.
        offsets: where each row begins; and the end.
        most: steps of an element.
        found: float64 (rows, wanted, 2): -1 where there are fewer, 0 where a row did not change.
    """
    for row in range(len(offsets) - 1):
        low, high = lows[offsets[row] : offsets[row + 1]], highs[offsets[row] : offsets[row + 1]]
        found[row] = -1.0
        if low.size == 0:
            found[row, 0] = 0.0
            continue
        best = 0
        for at in range(low.size):
            if (high[at] - low[at]) * high[best] < (high[best] - low[best]) * high[at]:
                best = at
        place = 0
        for count in range(1, most + 1):
            first, last = narrow(low, high, low[best] / count, high[best] / count, most)
            if last >= 0:
                found[row, place, 0], found[row, place, 1] = first, last
                place += 1
                if place == found.shape[1]:
                    break
        if place == 0:
            return False
    return True


def candidates(
    low: NDArray[np.float64], high: NDArray[np.float64], kind: np.dtype[Any]
) -> Iterator[NDArray[Any]]:
    """Yield sizes for each row, the likeliest first: few digits, the middle, and those around."""
    middle = ((low + high) / 2).astype(kind)
    yield _shortest(low, high, kind)
    yield middle
    yield low.astype(kind)
    yield high.astype(kind)
    above, below = middle, middle
    infinity = kind.type(np.inf)
    for _ in range(3):
        above, below = np.nextafter(above, infinity), np.nextafter(below, -infinity)
        yield above
        yield np.maximum(below, kind.type(0))


def _shortest(
    low: NDArray[np.float64], high: NDArray[np.float64], kind: np.dtype[Any]
) -> NDArray[Any]:
    """Return for each row the number with the fewest mantissa bits between two others."""
    middle = (low + high) / 2
    found = middle.copy()
    _, exponents = np.frexp(middle)
    waiting = np.ones(len(low), dtype=bool)
    for bits in range(1, 53):
        unit = np.ldexp(1.0, exponents - bits)
        near = np.rint(middle / unit) * unit
        hit = waiting & (near >= low) & (near <= high)
        found[hit] = near[hit]
        waiting &= ~hit
        if not waiting.any():
            break
    return found.astype(kind)
