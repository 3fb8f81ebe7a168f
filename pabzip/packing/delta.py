"""Find how a fine-tuned tensor differs from its base's: not at all, by steps, or by small numbers.

A step size is not in the files: ``tuned - base`` is a step only up to the rounding of the sum. So
every changed element gives an interval, the steps that round to what is there; where all intervals
of a tensor or row have a common part, candidates from it are tried, and one is taken only if it
gives the tuned tensor back bit for bit. For whole numbers of steps, the element that is known most
precisely is taken for 1, 2, 3 ... steps in turn, which leaves few intervals to test.

Source: ComPEFT (Yadav, Choshen, Raffel, Bansal 2023, arXiv 2311.13171), Section 2: changes are
their top-k signs times one scalar.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pabzip.formats import DENSE_TYPES, HALF_TYPES, Base, DeltaTensor, DenseTensor
from pabzip.formats.delta_base import fitting
from pabzip.formats.delta_changes import (
    MAX_STEPS,
    Change,
    differences,
    stepped,
    working_type,
)
from pabzip.formats.dense import from_stored, not_finite
from pabzip.formats.ternary_layouts import packed_size
from pabzip.formats.trits import pack_codes
from pabzip.packing.delta_steps import Pair, candidates, intervals, narrow, step_sizes

LEAST_ROW = 16
"""Fewer elements a row than this do not pay for a step size of their own."""

LEAST_PACKED = 1 << 16
"""Fewer elements are not packed five a byte: small sections take single numbers better."""

_BLOCK = 1 << 16  # elements that are looked at in one go
_MOST_TRIED = 4  # numbers of steps of the most precise element that hold for the first block

_EVEN = 66  # sizes tried in a row where products are rounded coarsely


def delta_tensor(
    name: str, array: NDArray[Any], dtype: str, base_array: NDArray[Any]
) -> DeltaTensor | None:
    """Return a fine-tuned tensor as a change of its base's, where that is small.

    Args:
        name: of both.
        array: the tuned values, in the numpy type that `pabzip.formats.DENSE_TYPES` gives for
            ``dtype``; bfloat16 as uint16 bit patterns.
        dtype: torch's name of the element type of both.
        base_array: the base's values, of the same shape and type.

    Returns:
        A tensor that gives ``array`` back bit for bit and keeps ``base_array`` for that; None where
        values are not finite, or the change takes no fewer bytes than the values themselves.
    """
    array = np.ascontiguousarray(array, dtype=DENSE_TYPES[dtype].numpy).reshape(array.shape)
    base_array = np.asarray(base_array, dtype=DENSE_TYPES[dtype].numpy, order="C")
    if not array.size:
        return None
    if DENSE_TYPES[dtype].floating and not_finite(array, dtype):
        return None
    pair = (base_array.reshape(-1), array.reshape(-1))

    def made(
        change: Change, numbers: NDArray[Any] | None = None, scales: NDArray[Any] | None = None
    ) -> DeltaTensor:
        shape = array.shape
        return DeltaTensor(name, shape, dtype, change, numbers, scales, lambda: base_array)

    if all(np.array_equal(_bits(base), _bits(tuned)) for base, tuned in _blocks(pair)):
        return made(Change("equal"))
    found: list[tuple[int, DeltaTensor]] = []
    steps = _smallest_steps(pair, array.shape, dtype)
    if steps is not None:
        found.append((_bytes_of(steps[1]) + steps[2].nbytes, made(*steps)))
    # One scale and single steps: hardly ever does anything else come near.
    plain = steps is not None and not steps[0].rows
    if steps is None or not plain or (steps[0].stored == "int8" and np.abs(steps[1]).max() > 1):
        change, numbers = _difference(pair, dtype)
        found.append((_bytes_of(numbers), made(change, numbers)))
    size, best = min(found, key=lambda one: one[0])
    return best if size < _bytes_of(pair[1]) else None


def change_of(tensor: DenseTensor, base: Base) -> DeltaTensor | None:
    """Return a dense tensor as a change of the base's of its name; None where there is none such.

    Raises:
        BaseFileError: the base is damaged.
    """
    if tensor.stored != tensor.dtype:
        return None
    values = _of_base(base, tensor.name, tensor.dtype, tensor.shape)
    if values is None:
        return None
    found = delta_tensor(tensor.name, tensor.values, tensor.dtype, values)
    if found is None:
        return None
    # By name, so that neither the base's values nor the tuned ones are kept meanwhile.
    read = partial(_of_base, base, tensor.name, tensor.dtype, tensor.shape)
    return found.on_base(cast(Callable[[], NDArray[Any]], read))


def _of_base(base: Base, name: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any] | None:
    """Return the base's tensor of a name, if it has one of this type and shape."""
    there = base.read(name)
    return None if there is None else fitting(*there, dtype, shape)


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    """Return the bit patterns of elements."""
    return values.view(f"<u{values.itemsize}")


def _blocks(pair: Pair) -> Iterator[Pair]:
    """Yield both tensors a block at a time, so that what is made of them stays small."""
    for start in range(0, pair[0].size, _BLOCK):
        yield pair[0][start : start + _BLOCK], pair[1][start : start + _BLOCK]


def _difference(pair: Pair, dtype: str) -> tuple[Change, NDArray[Any]]:
    """Return any change, as numbers of the narrowest type that holds them."""
    most = max(int(differences(*block, dtype).max()) for block in _blocks(pair))
    width = next(size for size in (1, 2, 4, 8) if most < 1 << 8 * size)
    stored = {1: "uint8", 2: "int16", 4: "int32", 8: "int64"}[width]
    numbers = np.empty(pair[0].size, dtype=f"<u{width}")
    for number, block in enumerate(_blocks(pair)):
        numbers[number * _BLOCK :][:_BLOCK] = differences(*block, dtype)
    return Change("difference", stored=stored), numbers.view(DENSE_TYPES[stored].numpy)


def _bytes_of(values: NDArray[Any]) -> int:
    """Return about the bytes that a dense section takes for values: by planes of bytes.

    That is their entropy, and a byte for each value that a plane has.
    """
    planes = values.reshape(-1).view(np.uint8).reshape(-1, values.itemsize)
    total = 0.0
    for plane in planes.T:
        counts = np.zeros(256, dtype=np.int64)
        for start in range(0, len(plane), _BLOCK):
            counts += np.bincount(plane[start : start + _BLOCK], minlength=256)
        seen = counts[counts > 0]
        total += float(np.sum(seen * -np.log2(seen / len(plane)))) / 8 + len(seen)
    return int(total)


def _smallest_steps(
    pair: Pair, shape: tuple[int, ...], dtype: str
) -> tuple[Change, NDArray[Any], NDArray[Any]] | None:
    """Return a change of the form ``steps``, its numbers and sizes; None if there is none.

    The plainest that gives the tuned tensor: one step at most before more, one size before one a
    row.
    """
    if not DENSE_TYPES[dtype].floating or not_finite(pair[0], dtype):
        return None
    everywhere = _zeros_added(pair, dtype)
    if everywhere is None:
        return None
    work = working_type(dtype)
    rowed = len(shape) > 1 and shape[0] > 1 and pair[0].size >= LEAST_ROW * shape[0]
    for most in (1, MAX_STEPS):
        for rows in (False, True) if rowed else (False,):
            for product in (work, dtype) if most > 1 and dtype in HALF_TYPES else (work,):
                change = Change("steps", rows, product, everywhere, "int8")
                found = _steps(pair, shape[0] if rows else 1, dtype, change, most)
                if found is None:
                    continue
                scales = found[1] if rows else found[1].reshape(())
                if most == 1 and pair[0].size >= LEAST_PACKED:
                    return replace(change, stored="trits"), _packed(found[0]), scales
                return change, found[0], scales
    return None


def _packed(numbers: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Return numbers of steps, -1 to 1, five a byte."""
    packed = np.empty(packed_size(numbers.size), dtype=np.uint8)
    pack_codes(numbers, packed)
    return packed


def _zeros_added(pair: Pair, dtype: str) -> bool | None:
    """Return whether -0.0 became +0.0 where nothing else changed; None where only some did."""
    lost = kept = False
    for block in _blocks(pair):
        base, tuned = (_bits(values) for values in block)
        negative = base == base.dtype.type(1 << (8 * base.itemsize - 1))
        lost = lost or bool(np.any(negative & (tuned == 0)))
        kept = kept or bool(np.any(negative & (tuned == base)))
    return None if lost and kept else lost


def _steps(
    pair: Pair, rows: int, dtype: str, change: Change, most: int
) -> tuple[NDArray[np.int8], NDArray[Any]] | None:
    """Return numbers of steps and their sizes, in the working type, one for each of ``rows``."""
    size = pair[0].size // rows
    scales = np.zeros(rows, dtype=DENSE_TYPES[working_type(dtype)].numpy)
    numbers = np.zeros(pair[0].size, dtype=np.int8)
    if rows == 1:
        sizes = _one_size(pair, dtype, change, most)
        for candidate in sizes:
            if _give_back(pair, dtype, change, most, candidate, numbers):
                return numbers, candidate
        return None
    together = max(1, _BLOCK // size)
    for start in range(0, rows, together):
        stop = min(rows, start + together)
        part = pair[0][start * size : stop * size], pair[1][start * size : stop * size]
        into = numbers[start * size : stop * size]
        if not _fit_rows(part, dtype, change, most, into, scales[start:stop]):
            return None
    return numbers, scales


def _one_size(pair: Pair, dtype: str, change: Change, most: int) -> Iterator[NDArray[Any]]:
    """Yield what the one step size of a tensor may be, arrays of one: from a sample, then all."""
    count = sum(len(changed) for changed in _changed(pair))
    every, seen, parts = -(-count // _BLOCK), 0, []
    for changed in _changed(pair):
        parts.append(changed[-seen % every :: every].copy())
        seen += len(changed)
    sample = np.concatenate(parts)
    lows, highs, offsets = intervals(pair, sample, dtype, change, pair[0].size)
    hypotheses = np.empty((1, _MOST_TRIED, 2))
    if not step_sizes(lows, highs, offsets, most, hypotheses):
        return
    for low, high in hypotheses[0]:
        for changed in _changed(pair) if every > 1 else ():
            if high < 0:
                break
            lows, highs, _ = intervals(pair, changed, dtype, change, pair[0].size)
            low, high = narrow(lows, highs, low, high, most)
        if high >= 0:
            interval = np.array([low]), np.array([high])
            kind = DENSE_TYPES[working_type(dtype)].numpy
            yield from candidates(*interval, kind)
            if most > 1 and change.product in HALF_TYPES:  # many sizes near the true one fail
                yield from np.linspace(low, high, _EVEN).astype(kind).reshape(-1, 1)


def _changed(pair: Pair) -> Iterator[NDArray[np.int64]]:
    """Yield the places of the elements that differ, ascending, so many of them at a time."""
    waiting = np.empty(0, dtype=np.int64)
    for number, (base, tuned) in enumerate(_blocks(pair)):
        found = np.flatnonzero(_bits(base) != _bits(tuned)) + number * _BLOCK
        waiting = np.concatenate([waiting, found])
        if len(waiting) >= _BLOCK:
            yield waiting[:_BLOCK]
            waiting = waiting[_BLOCK:]
    if len(waiting):
        yield waiting


def _fit_rows(
    pair: Pair,
    dtype: str,
    change: Change,
    most: int,
    numbers: NDArray[np.int8],
    scales: NDArray[Any],
) -> bool:
    """Write each row's step size and numbers of steps; return whether all rows have one."""
    rows = len(scales)
    size = pair[0].size // rows
    changed = np.flatnonzero(_bits(pair[0]) != _bits(pair[1]))
    lows, highs, offsets = intervals(pair, changed, dtype, change, size)
    found = np.empty((rows, 1, 2))
    if not step_sizes(lows, highs, offsets, most, found):
        return False
    left = np.arange(rows)
    base, tuned = (values.reshape(rows, size) for values in pair)
    for candidate in candidates(found[:, 0, 0], found[:, 0, 1], scales.dtype):
        part = base[left].reshape(-1), tuned[left].reshape(-1)
        sizes = np.repeat(candidate[left], size)
        made, right = _nearest(*part, dtype, change, most, sizes)
        fits = right.reshape(-1, size).all(axis=1)
        scales[left[fits]] = candidate[left[fits]]
        numbers.reshape(rows, size)[left[fits]] = made.reshape(-1, size)[fits]
        left = left[~fits]
        if not len(left):
            return True
    return False


def _give_back(
    pair: Pair, dtype: str, change: Change, most: int, scale: NDArray[Any], out: NDArray[np.int8]
) -> bool:
    """Write the numbers of steps of one size that give the tuned elements; False without."""
    for start in range(0, pair[0].size, _BLOCK):
        part = slice(start, start + _BLOCK)
        made, right = _nearest(pair[0][part], pair[1][part], dtype, change, most, scale)
        if not right.all():
            return False
        out[part] = made
    return True


def _nearest(
    base: NDArray[Any],
    tuned: NDArray[Any],
    dtype: str,
    change: Change,
    most: int,
    scales: NDArray[Any],
) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    """Return the numbers of steps that come nearest, and whether they give the tuned elements."""
    work = working_type(dtype)
    with np.errstate(all="ignore"):
        far = from_stored(tuned, work, dtype).astype(np.float64) - from_stored(base, work, dtype)
        exact = np.where((scales > 0) & (_bits(base) != _bits(tuned)), far / scales, 0.0)
    nearest = np.clip(np.rint(exact), -most, most)
    numbers = nearest.astype(np.int8)
    right = _bits(stepped(base, numbers, scales, dtype, change)) == _bits(tuned)
    if not right.all() and most > 1:  # where the sum is coarse, the number beyond may round to it
        other = np.clip(nearest + np.where(exact > nearest, 1, -1), -most, most).astype(np.int8)
        numbers = np.where(right, numbers, other)
        right = _bits(stepped(base, numbers, scales, dtype, change)) == _bits(tuned)
    return numbers, right
