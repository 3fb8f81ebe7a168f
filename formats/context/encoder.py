"""The encoder of the `context` coder: compare ways to code each tensor, and take the cheapest.

Nothing here is part of the format: any choice gives a file that decodes to the same codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pabzip.formats.coder import OnTensor
from pabzip.formats.context.fit import SLOPES, SOFT_SLOPES, bucket_counts, buckets_of, fit_factors
from pabzip.formats.context.geometry import (
    ActiveBlock,
    ActivePlan,
    ActiveWeights,
    Layout,
    find_active,
    gather_active,
)
from pabzip.formats.context.model import (
    COUNT,
    SCALE,
    SIGNS_CODED,
    SIGNS_KEPT,
    SIGNS_PLAIN,
    UNITS,
    Description,
    Factors,
    MaskMode,
    Predictor,
    scale_index,
    sign_bytes,
)
from pabzip.formats.context.range_coder import FLUSH_BYTES, ONE, encode_bit, finish
from pabzip.formats.context.side_information import SideInformation
from pabzip.formats.seeded import SeededTensor
from pabzip.seeds import InitSpec
from pabzip.seeds.compiled import compiled
from pabzip.seeds.generation import thread_count
from pabzip.seeds.kernels import Generator

_SMALL = 100_000  # active weights: below, the coarser unit may pay
_LOOSE = 0.25  # of the order-0 bits: a mask that costs more may fit better with softer slopes
_LEAST_GAIN = 0.995  # coded signs must at least save this to be worth their time


def encode_tensors(
    seed: int, tensors: Sequence[SeededTensor], on_tensor: OnTensor | None = None
) -> tuple[list[bytes], bytes]:
    """Encode the tensors of one file, in its order: one payload per tensor, and the side stream.

    ``on_tensor`` is called with the name of each tensor that is done, from the thread that did it.
    """
    if not tensors:
        return [], b""
    rows_before = [None, *(tensor.shape[0] for tensor in tensors[:-1])]

    def encode(index: int) -> tuple[Description, bytes]:
        tensor = tensors[index]
        done = encode_tensor(seed, tensor.spec, tensor.marked(seed), rows_before=rows_before[index])
        if on_tensor is not None:
            on_tensor(tensor.name)
        return done

    # The largest first, so that no thread is left with one at the end.
    order = sorted(range(len(tensors)), key=lambda index: -tensors[index].codes.size)
    with ThreadPoolExecutor(thread_count(None), thread_name_prefix="pabzip-encode") as pool:
        encoded = dict(zip(order, pool.map(encode, order), strict=True))
    information = SideInformation()
    for index, tensor in enumerate(tensors):
        description = encoded[index][0]
        information.tensor(tensor.shape, int(description.survivors.sum()), description)
    return [encoded[index][1] for index in range(len(tensors))], information.stream.getvalue()


def encode_tensor(
    seed: int, spec: InitSpec, codes: NDArray[np.int8], *, rows_before: int | None = None
) -> tuple[Description, bytes]:
    """Encode one tensor: what the side stream must say of it, and its payload.

    Codes above 1 mark places that the seed freezes; nothing is spent on them. ``rows_before`` is
    the number of output channels of the tensor before it in the file, if any.
    """
    flat = np.ascontiguousarray(codes).reshape(-1)
    ways = (_under_layout(seed, spec, flat, one) for one in layouts(codes.shape, rows_before))
    description, weights, _ = min(ways, key=lambda way: way[2])
    return description, encode_chunks(description, weights)


def encode_chunks(description: Description, weights: ActiveWeights) -> bytes:
    """Return the payload of a tensor, and note the sizes of its chunks in the description.

    Every survivor must be in the description's bucket ``first`` or above, every pruned weight below
    ``last``.
    """
    codes, predictor = weights.codes, description.predictor(weights.plan)
    buckets = np.zeros(len(codes), dtype=np.uint8)
    if predictor.scored:
        buckets = buckets_of(weights, predictor.row_offsets, predictor.place_offsets)
    parts: list[bytes] = []
    coded_bytes, survivors, start = [], [], 0
    for count in description.active.chunk_weights().tolist():
        chunk = slice(start, start + count)
        coded = np.zeros(4 * count + 16 + FLUSH_BYTES, dtype=np.uint8)
        signs = np.zeros((count + 7) // 8, dtype=np.uint8)
        length, kept = _encode(predictor, buckets[chunk], codes[chunk], coded, signs)
        parts += [coded[:length].tobytes(), signs[: sign_bytes(predictor.signs, kept)].tobytes()]
        coded_bytes.append(length)
        survivors.append(kept)
        start += count
    description.coded_bytes = np.array(coded_bytes, dtype=np.int64)
    description.survivors = np.array(survivors, dtype=np.int64)
    return b"".join(parts)


@compiled
def _encode(
    model: Predictor,
    buckets: NDArray[np.uint8],
    codes: NDArray[np.int8],
    coded: NDArray[np.uint8],
    signs: NDArray[np.uint8],
) -> tuple[int, int]:
    """Encode a chunk; return the coded length and the number of survivors."""
    low, span, position = np.uint64(0), np.uint64(0xFFFFFFFF), 0
    survivors = 0
    for index in range(len(codes)):
        code, bucket = codes[index], int(buckets[index])
        if code > 1:
            continue
        if model.first <= bucket < model.last:
            kept, chance = 1 if code else 0, model.chances[bucket]
            low, span, position = encode_bit(low, span, position, coded, kept, chance)
        if code == 0:
            continue
        flipped = 1 if code < 0 else 0
        if model.signs == SIGNS_PLAIN:
            signs[survivors >> 3] |= np.uint8(flipped << (survivors & 7))
        elif model.signs == SIGNS_CODED:
            chance = model.flip_chance
            low, span, position = encode_bit(low, span, position, coded, flipped, chance)
        survivors += 1
    return finish(low, span, position, coded), survivors


def _under_layout(
    seed: int, spec: InitSpec, flat: NDArray[np.int8], layout: Layout
) -> tuple[Description, ActiveWeights, float]:
    """Return the best way to store a tensor's codes under one layout, without the chunks.

    The number is about how many bits the mask and all that predicts it take.
    """
    active = find_active(flat, layout)
    count = active.count()
    weights = ActiveWeights(
        ActivePlan.of(active), np.zeros(count, dtype=np.int16), np.zeros(count, dtype=np.int8)
    )
    if not count:
        return Description(active), weights, 0.0
    gather_active(Generator.of(seed, spec), flat, weights)
    description, bits = describe(active, weights)
    for flags in (active.row_active, active.column_active):
        bits += 0 if flags.all() else len(flags)
    return description, weights, bits


def layouts(shape: tuple[int, ...], rows_before: int | None) -> Iterator[Layout]:
    """Yield how a tensor may be seen, the plain way first.

    A Linear whose inputs are a multiple of ``rows_before``, the output channels of the tensor
    before it, may follow a flatten; a convolution with fewer inputs may be grouped.
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


def describe(active: ActiveBlock, weights: ActiveWeights) -> tuple[Description, float]:
    """Choose how to store the codes of an active block, in which at least one weight survives.

    Returns the description, but for its chunks, and about how many bits mask and factors take.
    """
    description = Description(active)
    codes = weights.codes
    survivors, learned = int(weights.kept.sum()), int(np.count_nonzero(codes <= 1))
    _choose_signs(description, int(np.count_nonzero(codes < 0)), survivors)
    if survivors == learned:
        return description, 0.0
    even = _entropy(survivors, learned)
    best = even
    description.mask = MaskMode.EVEN
    description.chance = min(max(round(ONE * survivors / learned), 1), ONE - 1)
    for mode, factors, extra in _predictions(active, weights, even):
        first, last, indices, bits = _table(bucket_counts(weights, factors))
        if bits + extra < best:
            best = bits + extra
            description.mask, description.factors = mode, factors
            description.first, description.last, description.indices = first, last, indices
    return description, best


def _predictions(
    active: ActiveBlock, weights: ActiveWeights, even: float
) -> Iterator[tuple[MaskMode, Factors, float]]:
    """Yield ways to predict a mask, each with about the bits that its numbers take."""
    threshold = Factors.even(active, 1, -_threshold(weights))
    yield MaskMode.THRESHOLD, threshold, 24
    least = 2.0 * (len(active.rows) + len(threshold.columns))
    if least > even:
        return  # two bits per factor is less than any fit will need
    for unit in UNITS if len(weights.codes) < _SMALL else UNITS[:1]:
        factors = fit_factors(weights, unit, SLOPES)
        yield MaskMode.FACTORS, factors, _factor_bits(factors)
        if _table(bucket_counts(weights, factors))[3] > _LOOSE * even:
            factors = fit_factors(weights, unit, SOFT_SLOPES)
            yield MaskMode.FACTORS, factors, _factor_bits(factors)


def _threshold(weights: ActiveWeights) -> int:
    """Return the level that splits pruned from surviving weights with the fewest mistakes."""
    learned = weights.codes <= 1
    levels, mask = weights.levels[learned], weights.kept[learned]
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


def _choose_signs(description: Description, flipped: int, survivors: int) -> None:
    """Choose how flips are stored: not at all, as plain bits, or coded."""
    if flipped == 0:
        description.signs = SIGNS_KEPT
        return
    index = scale_index(flipped, survivors)
    chance = SCALE[index] / ONE
    coded = -(flipped * np.log2(chance) + (survivors - flipped) * np.log2(1 - chance)) + 7
    if coded < _LEAST_GAIN * survivors:
        description.signs, description.flip_index = SIGNS_CODED, index
    else:
        description.signs = SIGNS_PLAIN


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
