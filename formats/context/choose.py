"""Choose how a tensor is told in the fewest bits: layout, mask, probabilities, signs.

Encoder only: any choice gives a file that decodes to the same codes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pabzip.formats.context.buckets import COUNT
from pabzip.formats.context.descent import bucket_counts
from pabzip.formats.context.description import Description, MaskMode
from pabzip.formats.context.factors import UNITS, Factors
from pabzip.formats.context.fit import SLOPES, SOFT_SLOPES, fit_factors
from pabzip.formats.context.layout import Layout, LiveBlock
from pabzip.formats.context.live import LivePlan
from pabzip.formats.context.predictor import SIGNS_CODED, SIGNS_KEPT, SIGNS_PLAIN
from pabzip.formats.context.probabilities import ONE, SCALE, scale_index

_SMALL = 100_000  # live weights: below, the coarser unit may pay
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
    live: LiveBlock, plan: LivePlan, levels: NDArray[np.int16], codes: NDArray[np.int8]
) -> tuple[Description, float]:
    """Choose how to tell the codes of a live block.

    Args:
        live: the block; at least one weight survives.
        plan: the same, laid out.
        levels: int16, of each live weight.
        codes: int8, of each live weight.

    Returns:
        The description, but for its chunks, and about how many bits mask and factors take.
    """
    told = Description(live)
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
    plan: LivePlan, levels: NDArray[np.int16], mask: NDArray[np.bool_], even: float
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
