"""Coordinate descent: move rounded factors to where mask and factors take the fewest bits.

Only an encoder descends; nothing here is part of the format.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pabzip.formats.context.buckets import BUCKET_OF, COUNT, REACH
from pabzip.formats.context.factors import Factors
from pabzip.formats.context.live import LivePlan
from pabzip.seeds.compiled import compiled

_SHIFTS = 9  # candidates a factor: -4 to +4 units


def bucket_counts(
    plan: LivePlan, levels: NDArray[np.int16], mask: NDArray[np.bool_], factors: Factors
) -> NDArray[np.int64]:
    """Return how many live weights fall in each bucket, (30, 2): pruned and surviving."""
    counts = np.zeros((COUNT, 2), dtype=np.int64)
    _count(
        plan.group, plan.starts, levels, mask,
        factors.row_offsets(), factors.place_offsets(plan), counts,
    )  # fmt: skip
    return counts


@compiled
def _count(
    group: NDArray[np.int64],
    starts: NDArray[np.int64],
    levels: NDArray[np.int16],
    mask: NDArray[np.bool_],
    row_offsets: NDArray[np.int32],
    place_offsets: NDArray[np.int32],
    counts: NDArray[np.int64],
) -> None:
    """Count the live weights of each bucket."""
    done = 0
    for row in range(len(row_offsets)):
        base = row_offsets[row]
        for place in range(starts[group[row]], starts[group[row] + 1]):
            score = levels[done] + base + place_offsets[place]
            score = min(max(score, -REACH - 1), REACH)
            counts[BUCKET_OF[score + REACH + 1], np.int64(mask[done])] += 1
            done += 1


def bit_costs(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return about how many bits a pruned and a surviving weight cost in each bucket, (30, 2)."""
    total = counts.sum(axis=1)
    chance = (counts[:, 1] + 0.01) / (total + 0.02)
    empty = total == 0
    chance[empty] = (np.arange(COUNT) >= COUNT // 2)[empty]
    chance = np.clip(chance, 2.0**-14, 1 - 2.0**-14)
    return np.stack([-np.log2(1 - chance), -np.log2(chance)], axis=1).astype(np.float32)


def descend(
    plan: LivePlan,
    levels: NDArray[np.int16],
    mask: NDArray[np.bool_],
    factors: Factors,
    costs: NDArray[np.float32],
) -> None:
    """Move each row's factor, then each column's, to where the bits are fewest, in place."""
    for by_row in (True, False):
        values = factors.rows if by_row else factors.columns
        cost = np.zeros((len(values), _SHIFTS), dtype=np.float32)
        _shift_costs(
            plan.group, plan.starts, plan.column, levels, mask, factors.row_offsets(),
            factors.place_offsets(plan), factors.unit, costs, by_row, cost,
        )  # fmt: skip
        candidates = values[:, None] + np.arange(_SHIFTS) - _SHIFTS // 2
        total = cost + _factor_costs(values, candidates)
        total[:, _SHIFTS // 2] -= 1e-3  # stay where nothing is gained
        values += (np.argmin(total, axis=1) - _SHIFTS // 2).astype(np.int32)


def _factor_costs(values: NDArray[np.int32], candidates: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return about how many bits each candidate takes, from how the values scatter now."""
    middle = int(np.median(values))
    distance = np.minimum(np.abs(values - middle), 2047)
    counts = np.bincount(distance, minlength=2048).astype(float)
    smooth = np.convolve(counts, np.ones(5) / 5, "same")
    smooth += 1e-3 * np.exp(-np.arange(2048) / max(4.0, 2 * distance.mean() + 1))
    bits = 1 - np.log2(smooth / smooth.sum())
    bits[0] -= 1  # no sign
    return np.asarray(bits[np.minimum(np.abs(candidates - middle), 2047)])


@compiled
def _shift_costs(
    group: NDArray[np.int64],
    starts: NDArray[np.int64],
    column: NDArray[np.int64],
    levels: NDArray[np.int16],
    mask: NDArray[np.bool_],
    row_offsets: NDArray[np.int32],
    place_offsets: NDArray[np.int32],
    unit: int,
    costs: NDArray[np.float32],
    by_row: bool,
    cost: NDArray[np.float32],
) -> None:
    """Add up, for each row or column, the bits of its mask after a shift of -4 to +4 units."""
    half = _SHIFTS // 2
    far = REACH + half * unit
    done = 0
    for row in range(len(row_offsets)):
        base = row_offsets[row]
        for place in range(starts[group[row]], starts[group[row] + 1]):
            score = levels[done] + base + place_offsets[place]
            kept = np.int64(mask[done])
            done += 1
            if (score > far and kept == 1) or (score < -far and kept == 0):
                continue
            target = row if by_row else column[place]
            for shift in range(_SHIFTS):
                moved = score + (shift - half) * unit
                moved = min(max(moved, -REACH - 1), REACH)
                cost[target, shift] += costs[BUCKET_OF[moved + REACH + 1], kept]
