"""Fit the model to a mask: logistic regression, then integer coordinate descent.

SynFlow keeps a weight when |w| times a factor of its output channel times factors of its input
channel and kernel position exceeds a threshold, so in logarithms the mask is the sign of
``level + row + column + position``. The fit is a logistic regression on that sum whose slope grows,
by diagonal Newton steps; then the factors are rounded to the units they are stored in, and
improved by integer coordinate descent on the bits that mask and factors really take.

Only an encoder fits; nothing here is part of the format, and floating point is welcome.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pabzip.formats.context.geometry import ActiveWeights
from pabzip.formats.context.model import BUCKET_OF, COUNT, REACH, Factors
from pabzip.seeds.compiled import compiled

SLOPES = (4, 8, 16, 32, 64, 128)
"""Slopes of the logistic curve, per octave: from a blurred threshold to a sharp one."""

SOFT_SLOPES = (2.5, 4, 8)
"""The same for masks that follow the factors only loosely, as SNIP's do."""

_SWEEPS_A_SLOPE = 5
_ROUNDS = 2  # of coordinate descent; more do not help
_LONGEST_STEP = 64.0  # levels
_RIDGE = 0.05

_CURVE_REACH, _CURVE_STEPS = 12.0, 4096
_CURVE = (1 / (1 + np.exp(-np.linspace(-_CURVE_REACH, _CURVE_REACH, _CURVE_STEPS + 1)))).astype(
    np.float32
)
_CURVE_SCALE = np.float32(_CURVE_STEPS / (2 * _CURVE_REACH))
_CURVE_END = np.float32(_CURVE_REACH)

_SHIFTS = 9  # candidates a factor: -4 to +4 units


def fit_factors(weights: ActiveWeights, unit: int, slopes: tuple[float, ...]) -> Factors:
    """Fit factors that put the threshold of one tensor's scores at 0.

    Those of rows and columns are rounded to ``unit`` levels; ``slopes`` are those of the logistic
    curve, one stage each.
    """
    rows, columns, positions = _newton(weights, slopes)
    factors = Factors(
        unit,
        np.round(rows / unit).astype(np.int32),
        np.round(columns / unit).astype(np.int32),
        np.round(positions).astype(np.int32),
    )
    for _ in range(_ROUNDS):
        _coordinate_descent(weights, factors, _bit_costs(bucket_counts(weights, factors)))
    return factors


def _newton(weights: ActiveWeights, slopes: tuple[float, ...]) -> tuple[NDArray[np.float64], ...]:
    """Return real-valued factors in levels, column and position factors about their medians."""
    plan, rows = weights.plan, _row_thresholds(weights)
    columns = np.zeros(int(plan.column[-1]) + 1)
    positions = np.zeros(int(plan.position.max()) + 1)
    for slope in slopes:
        steepness = slope / 256
        for _ in range(_SWEEPS_A_SLOPE):
            offsets = (columns[plan.column] + positions[plan.position]).astype(np.float32)
            gradient, curvature = np.zeros(len(offsets)), np.zeros(len(offsets))
            _sweep(weights, np.float32(steepness), offsets, rows, gradient, curvature)
            columns += _steps(plan.column, gradient, curvature, len(columns), steepness)
            positions += _steps(plan.position, gradient, curvature, len(positions), steepness)
    shift = float(np.median(columns))
    twist = float(np.median(positions))
    return rows + (shift + twist), columns - shift, positions - twist


def _row_thresholds(weights: ActiveWeights) -> NDArray[np.float64]:
    """Return a first guess a row: minus the quantile of its levels that its mask cuts at."""
    plan, levels, codes = weights
    survives = weights.kept
    begin, guesses = 0, np.zeros(len(plan.rows))
    for index, end in enumerate(plan.ends.tolist()):
        learned = codes[begin:end] <= 1
        count = int(np.count_nonzero(learned))
        if count:
            kept = int(np.count_nonzero(survives[begin:end]))
            cut = min(max(count - kept, 0), count - 1)
            guesses[index] = -float(np.partition(levels[begin:end][learned], cut)[cut])
        begin = end
    return guesses


def _steps(
    index: NDArray[np.int64],
    gradient: NDArray[np.float64],
    curvature: NDArray[np.float64],
    count: int,
    steepness: float,
) -> NDArray[np.float64]:
    """Return the Newton steps of one kind of factor, without their common part.

    The rows have taken the common part already; taking it twice would overshoot and oscillate.
    """
    slope = np.bincount(index, gradient, count)
    bend = np.bincount(index, curvature, count)
    step = np.clip(slope / (steepness * (bend + _RIDGE)), -_LONGEST_STEP, _LONGEST_STEP)
    return np.asarray(0.9 * (step - step.mean()))


@compiled
def _sweep(
    weights: ActiveWeights,
    steepness: np.float32,
    offsets: NDArray[np.float32],
    rows: NDArray[np.float64],
    gradient: NDArray[np.float64],
    curvature: NDArray[np.float64],
) -> None:
    """Take a Newton step in every row; add up gradient and curvature of every place."""
    plan, levels, codes = weights
    done = 0
    for row in range(len(rows)):
        first, last = plan.starts[plan.group[row]], plan.starts[plan.group[row] + 1]
        base = np.float32(rows[row])
        total, bend = np.float32(0), np.float32(0)
        for place in range(first, last):
            if codes[done] > 1:
                done += 1
                continue
            score = steepness * (np.float32(levels[done]) + base + offsets[place])
            score = min(max(score, -_CURVE_END), _CURVE_END)
            chance = _CURVE[np.int32((score + _CURVE_END) * _CURVE_SCALE)]
            error = np.float32(codes[done] != 0) - chance
            spread = chance * (np.float32(1) - chance)
            gradient[place] += error
            curvature[place] += spread
            total += error
            bend += spread
            done += 1
        step = total / (steepness * (bend + np.float32(_RIDGE)))
        rows[row] += min(max(step, -_LONGEST_STEP), _LONGEST_STEP)


def bucket_counts(weights: ActiveWeights, factors: Factors) -> NDArray[np.int64]:
    """Return how many active weights fall in each bucket, (30, 2): pruned and surviving."""
    buckets = buckets_of(weights, factors.row_offsets(), factors.place_offsets(weights.plan))
    learned = weights.codes <= 1
    sorts = (2 * buckets + weights.kept)[learned]
    return np.bincount(sorts, minlength=2 * COUNT).reshape(COUNT, 2)


@compiled
def buckets_of(
    weights: ActiveWeights, row_offsets: NDArray[np.int32], place_offsets: NDArray[np.int32]
) -> NDArray[np.uint8]:
    """Return the bucket of each active weight."""
    plan, levels, _ = weights
    buckets = np.empty(len(levels), dtype=np.uint8)
    done = 0
    for row in range(len(row_offsets)):
        base = row_offsets[row]
        group = plan.group[row]
        for place in range(plan.starts[group], plan.starts[group + 1]):
            score = levels[done] + base + place_offsets[place]
            score = min(max(score, -REACH - 1), REACH)
            buckets[done] = BUCKET_OF[score + REACH + 1]
            done += 1
    return buckets


def _bit_costs(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return about how many bits a pruned and a surviving weight cost in each bucket, (30, 2)."""
    total = counts.sum(axis=1)
    chance = (counts[:, 1] + 0.01) / (total + 0.02)
    empty = total == 0
    chance[empty] = (np.arange(COUNT) >= COUNT // 2)[empty]
    chance = np.clip(chance, 2.0**-14, 1 - 2.0**-14)
    return np.stack([-np.log2(1 - chance), -np.log2(chance)], axis=1).astype(np.float32)


def _coordinate_descent(
    weights: ActiveWeights, factors: Factors, costs: NDArray[np.float32]
) -> None:
    """Move each row's factor, then each column's, to where the file takes the fewest bits."""
    for by_row in (True, False):
        values = factors.rows if by_row else factors.columns
        cost = np.zeros((len(values), _SHIFTS), dtype=np.float32)
        _shift_costs(
            weights, factors.row_offsets(), factors.place_offsets(weights.plan),
            factors.unit, costs, by_row, cost,
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
    weights: ActiveWeights,
    row_offsets: NDArray[np.int32],
    place_offsets: NDArray[np.int32],
    unit: int,
    costs: NDArray[np.float32],
    by_row: bool,
    cost: NDArray[np.float32],
) -> None:
    """Add up, for each row or column, the bits of its mask after a shift of -4 to +4 units."""
    plan, levels, codes = weights
    half = _SHIFTS // 2
    far = REACH + half * unit
    done = 0
    for row in range(len(row_offsets)):
        base = row_offsets[row]
        group = plan.group[row]
        for place in range(plan.starts[group], plan.starts[group + 1]):
            score = levels[done] + base + place_offsets[place]
            code = codes[done]
            done += 1
            if code > 1:
                continue
            kept = np.int64(code != 0)
            if (score > far and kept == 1) or (score < -far and kept == 0):
                continue
            target = row if by_row else plan.column[place]
            for shift in range(_SHIFTS):
                moved = score + (shift - half) * unit
                moved = min(max(moved, -REACH - 1), REACH)
                cost[target, shift] += costs[BUCKET_OF[moved + REACH + 1], kept]
