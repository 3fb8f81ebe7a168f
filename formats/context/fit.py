"""Fit the model to a mask: logistic regression, then integer coordinate descent.

Only an encoder descends; nothing here is part of the format.

SynFlow keeps a weight when |w| times a factor of its output channel times factors of its input
channel and kernel position exceeds a threshold, so in logarithms the mask is the sign of
``level + row + column + position``. The fit is a logistic regression on that sum whose slope grows,
by diagonal Newton steps; then the factors are rounded to the units they are stored in, and
improved by integer coordinate descent on the bits that mask and factors really take.

Only an encoder fits; nothing here is part of the format, and floating point is welcome.

Encoder only: any choice gives a file that decodes to the same codes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pabzip.formats.context.geometry import ActiveBlock, ActivePlan, Layout
from pabzip.formats.context.model import (
    BUCKET_OF,
    COUNT,
    ONE,
    REACH,
    SCALE,
    SIGNS_CODED,
    SIGNS_KEPT,
    SIGNS_PLAIN,
    UNITS,
    Description,
    Factors,
    MaskMode,
    scale_index,
)
from pabzip.seeds.compiled import compiled

_SHIFTS = 9  # candidates a factor: -4 to +4 units


def bucket_counts(
    plan: ActivePlan, levels: NDArray[np.int16], mask: NDArray[np.bool_], factors: Factors
) -> NDArray[np.int64]:
    """Return how many active weights fall in each bucket, (30, 2): pruned and surviving."""
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
    """Count the active weights of each bucket."""
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
    plan: ActivePlan,
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


SLOPES = (4, 8, 16, 32, 64, 128)
"""Of the logistic curve, an octave: from a blurred threshold to a sharp one."""

SOFT_SLOPES = (2.5, 4, 8)
"""For masks that follow the factors only loosely, as SNIP's do."""

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


def fit_factors(
    plan: ActivePlan,
    levels: NDArray[np.int16],
    mask: NDArray[np.bool_],
    unit: int,
    slopes: tuple[float, ...] = SLOPES,
) -> Factors:
    """Fit the factors of one tensor.

    Args:
        plan: the tensor's active weights.
        levels: int16, the level of each active weight.
        mask: bool, whether each active weight survives.
        unit: levels a unit that row and column factors are rounded to.
        slopes: of the logistic curve, one stage each.

    Returns:
        The factors; the threshold is 0.
    """
    rows, columns, positions = _newton(plan, levels, mask, slopes)
    factors = Factors(
        unit,
        np.round(rows / unit).astype(np.int32),
        np.round(columns / unit).astype(np.int32),
        np.round(positions).astype(np.int32),
    )
    for _ in range(_ROUNDS):
        counts = bucket_counts(plan, levels, mask, factors)
        descend(plan, levels, mask, factors, bit_costs(counts))
    return factors


def _newton(
    plan: ActivePlan, levels: NDArray[np.int16], mask: NDArray[np.bool_], slopes: tuple[float, ...]
) -> tuple[NDArray[np.float64], ...]:
    """Return real-valued factors in levels, column and position factors about their medians."""
    rows = _row_thresholds(plan, levels, mask)
    columns = np.zeros(int(plan.column[-1]) + 1)
    positions = np.zeros(int(plan.position.max()) + 1)
    for slope in slopes:
        steepness = slope / 256
        for _ in range(_SWEEPS_A_SLOPE):
            offsets = (columns[plan.column] + positions[plan.position]).astype(np.float32)
            gradient, curvature = np.zeros(len(offsets)), np.zeros(len(offsets))
            _sweep(
                plan.group, plan.starts, levels, mask, np.float32(steepness), offsets,
                rows, gradient, curvature,
            )  # fmt: skip
            columns += _steps(plan.column, gradient, curvature, len(columns), steepness)
            positions += _steps(plan.position, gradient, curvature, len(positions), steepness)
    shift = float(np.median(columns))
    twist = float(np.median(positions))
    return rows + (shift + twist), columns - shift, positions - twist


def _row_thresholds(
    plan: ActivePlan, levels: NDArray[np.int16], mask: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return a first guess a row: minus the quantile of its levels that its mask cuts at."""
    begin, guesses = 0, np.zeros(len(plan.rows))
    for index, end in enumerate(plan.ends.tolist()):
        if end > begin:
            kept = int(np.count_nonzero(mask[begin:end]))
            cut = min(max(end - begin - kept, 0), end - begin - 1)
            guesses[index] = -float(np.partition(levels[begin:end], cut)[cut])
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
    group: NDArray[np.int64],
    starts: NDArray[np.int64],
    levels: NDArray[np.int16],
    mask: NDArray[np.bool_],
    steepness: np.float32,
    offsets: NDArray[np.float32],
    rows: NDArray[np.float64],
    gradient: NDArray[np.float64],
    curvature: NDArray[np.float64],
) -> None:
    """Take a Newton step in every row; add up gradient and curvature of every place."""
    done = 0
    for row in range(len(rows)):
        first, last = starts[group[row]], starts[group[row] + 1]
        base = np.float32(rows[row])
        total, bend = np.float32(0), np.float32(0)
        for place in range(first, last):
            score = steepness * (np.float32(levels[done]) + base + offsets[place])
            score = min(max(score, -_CURVE_END), _CURVE_END)
            chance = _CURVE[np.int32((score + _CURVE_END) * _CURVE_SCALE)]
            error = np.float32(mask[done]) - chance
            spread = chance * (np.float32(1) - chance)
            gradient[place] += error
            curvature[place] += spread
            total += error
            bend += spread
            done += 1
        step = total / (steepness * (bend + np.float32(_RIDGE)))
        rows[row] += min(max(step, -_LONGEST_STEP), _LONGEST_STEP)


_SMALL = 100_000  # active weights: below, the coarser unit may pay
_LOOSE = 0.25  # of the order-0 bits: a mask that costs more may fit better with softer slopes
_LEAST_GAIN = 0.995  # coded signs must at least save this to be worth their time


def layouts(shape: tuple[int, ...], rows_before: int | None) -> Iterator[Layout]:
    """Yield how a tensor may be seen, the plain way first.

    Args:
        shape: of the tensor.
        rows_before: output channels of the tensor before it. A Linear whose inputs are a multiple
            of them may follow a flatten; a convolution with fewer inputs may be grouped.
    """
    plain = Layout.of_shape(shape)
    yield plain
    if rows_before is None or len(shape) < 2:
        return
    if plain.positions == 1 and 1 < rows_before < plain.columns:
        if plain.columns % rows_before == 0:
            yield Layout(plain.rows, rows_before, plain.columns // rows_before)
    elif 1 < plain.columns < rows_before and rows_before % plain.columns == 0:
        groups = rows_before // plain.columns
        if plain.rows % groups == 0:
            yield Layout(plain.rows, plain.columns, plain.positions, groups)


def describe(
    active: ActiveBlock, plan: ActivePlan, levels: NDArray[np.int16], codes: NDArray[np.int8]
) -> tuple[Description, float]:
    """Choose how to tell the codes of an active block.

    Args:
        active: the block; at least one weight survives.
        plan: the same, laid out.
        levels: int16, of each active weight.
        codes: int8, of each active weight.

    Returns:
        The description, but for its chunks, and about how many bits mask and factors take.
    """
    told = Description(active)
    mask = codes != 0
    survivors = int(np.count_nonzero(mask))
    _choose_signs(told, int(np.count_nonzero(codes < 0)), survivors)
    if survivors == len(codes):
        return told, 0.0
    even = _entropy(survivors, len(codes))
    best = even
    told.mask = MaskMode.EVEN
    told.chance = min(max(round(ONE * survivors / len(codes)), 1), ONE - 1)
    for mode, factors, extra in _predictions(plan, levels, mask, even):
        counts = bucket_counts(plan, levels, mask, factors)
        first, last, indices, bits = _table(counts)
        if bits + extra < best:
            best = bits + extra
            told.mask, told.factors = mode, factors
            told.first, told.last, told.indices = first, last, indices
    return told, best


def _predictions(
    plan: ActivePlan, levels: NDArray[np.int16], mask: NDArray[np.bool_], even: float
) -> Iterator[tuple[MaskMode, Factors, float]]:
    """Yield ways to predict a mask, each with about the bits that its numbers take."""
    threshold = _threshold(levels, mask)
    zeros = np.zeros(int(plan.column[-1]) + 1, dtype=np.int32)
    positions = np.zeros(int(plan.position.max()) + 1, dtype=np.int32)
    rows = np.full(len(plan.rows), -threshold, dtype=np.int32)
    yield MaskMode.THRESHOLD, Factors(1, rows, zeros, positions), 24
    least = 2.0 * (len(plan.rows) + len(zeros))
    if least > even:
        return  # two bits a factor is less than any fit will need
    for unit in UNITS if len(levels) < _SMALL else UNITS[:1]:
        factors = fit_factors(plan, levels, mask, unit, SLOPES)
        bits = _factor_bits(factors)
        yield MaskMode.FACTORS, factors, bits
        if _table(bucket_counts(plan, levels, mask, factors))[3] > _LOOSE * even:
            factors = fit_factors(plan, levels, mask, unit, SOFT_SLOPES)
            yield MaskMode.FACTORS, factors, _factor_bits(factors)


def _threshold(levels: NDArray[np.int16], mask: NDArray[np.bool_]) -> int:
    """Return the level that splits pruned from surviving weights with the fewest mistakes."""
    size = int(levels.max()) + 2
    kept = np.bincount(levels[mask], minlength=size)
    pruned = np.bincount(levels[~mask], minlength=size)
    mistakes = np.cumsum(kept) - np.cumsum(pruned)  # of a threshold just above each level
    return int(np.argmin(mistakes)) + 1


def _table(counts: NDArray[np.int64]) -> tuple[int, int, NDArray[np.int64], float]:
    """Return the uncertain buckets, the index of each one's probability, and the bits it takes."""
    surviving, pruned = np.flatnonzero(counts[:, 1]), np.flatnonzero(counts[:, 0])
    first = int(surviving[0]) if len(surviving) else COUNT
    last = max(first, int(pruned[-1]) + 1 if len(pruned) else 0)
    total = counts.sum(axis=1)
    indices = [scale_index(int(counts[b, 1]), int(total[b])) for b in range(first, last)]
    chance = SCALE[indices] / ONE if indices else np.zeros(0)
    ones, zeros = counts[first:last, 1], counts[first:last, 0]
    bits = -(ones * np.log2(chance) + zeros * np.log2(1 - chance)).sum()
    return first, last, np.array(indices, dtype=np.int64), float(bits) + 10 + 7 * (last - first)


def _choose_signs(told: Description, flipped: int, survivors: int) -> None:
    """Choose how flips are told: not at all, as plain bits, or coded."""
    if flipped == 0:
        told.signs = SIGNS_KEPT
        return
    index = scale_index(flipped, survivors)
    chance = SCALE[index] / ONE
    coded = -(flipped * np.log2(chance) + (survivors - flipped) * np.log2(1 - chance)) + 7
    if coded < _LEAST_GAIN * survivors:
        told.signs, told.flip_index = SIGNS_CODED, index
    else:
        told.signs = SIGNS_PLAIN


def _factor_bits(factors: Factors) -> float:
    """Return about how many bits factors take in the side stream."""
    bits = 0.0
    for values in (factors.rows, factors.columns, factors.positions):
        spread = np.abs(values - np.median(values)).mean()
        bits += len(values) * (np.log2(1 + spread) + 2)
    return float(bits)


def _entropy(ones: int, count: int) -> float:
    """Return the bits of ``count`` independent bits, ``ones`` of which are 1."""
    if ones in (0, count):
        return 0.0
    share = ones / count
    return float(-count * (share * np.log2(share) + (1 - share) * np.log2(1 - share)))
