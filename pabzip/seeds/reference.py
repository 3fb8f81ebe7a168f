"""The numpy backend: the definition of every weight, written to be read rather than to be fast."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import SeedError
from pabzip.seeds import philox
from pabzip.seeds.spec import InitSpec, check_backend

_CHUNK = 1 << 16  # elements at a time: bounds the temporaries

TABLE_SHA256 = "51234bae59cef983e4f8366f0cd41dc1b885af745d6e5de74b0af133873d7f08"
"""Digest of the normal table's numbers: uint32, little end first, all of a, then b, then c."""


def fill_magnitudes(seed: int, spec: InitSpec, start: int, out: NDArray[np.uint32]) -> None:
    """Write the fixed-point magnitudes of elements ``start`` onwards to ``out``, one-dimensional.

    Magnitudes are at least 1; see `pabzip.seeds.spec.FRACTION_BITS`.
    """
    for begin, end in _chunks(len(out)):
        words = philox.words(seed, spec.stream, start + begin, start + end)
        out[begin:end] = word_magnitudes(words, spec.distribution)


def fill_weights(seed: int, spec: InitSpec, start: int, out: NDArray[np.float32]) -> None:
    """Write the weights of elements ``start`` onwards, each with the sign the seed gives."""
    for begin, end in _chunks(len(out)):
        words = philox.words(seed, spec.stream, start + begin, start + end)
        out[begin:end] = _word_weights(words, spec)


def fill_regenerated(
    seed: int,
    spec: InitSpec,
    start: int,
    codes: NDArray[np.int8],
    out: NDArray[np.float32],
) -> bool:
    """Write the weights under ``codes``, both one-dimensional; code 0 gives +0.0.

    Returns:
        Whether every code was 0, +1 or -1. Otherwise the content of ``out`` means nothing.
    """
    for begin, end in _chunks(len(out)):
        words = philox.words(seed, spec.stream, start + begin, start + end)
        part = codes[begin:end]
        out[begin:end] = np.where(part == 0, np.float32(0), _word_weights(words, spec) * part)
    return bool(np.all((codes >= -1) & (codes <= 1)))


def word_magnitudes(words: NDArray[np.uint32], distribution: str) -> NDArray[np.uint32]:
    """Turn random words into fixed-point magnitudes; the words' top bits are left for the sign."""
    values = words << np.uint32(1) | np.uint32(1)  # odd, 1 to 2**32 - 1
    return _MAGNITUDES[distribution](values)


def normal_magnitudes(values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return the quantile of the standard normal for odd 32-bit values, in integers, by table.

    For an odd ``v`` of 32 bits the upper-tail probability is ``p = v / 2**33``, and the magnitude
    of the normal deviate is the x with P(X > x) = p, in fixed point with 28 bits after the point::

        octave  = leading zeros of v                  (0 to 31: how small p is)
        m       = v << octave                         (top bit set)
        segment = (m >> 25) & 63                      (64 equal parts of the octave)
        rest    = (m << 7) mod 2**32                  (place in the segment, a 32-bit fraction)
        n       = max(1, a - mulhi(rest, b - mulhi(rest, c)))     mulhi(x, y) = (x * y) >> 32

    with uint32 coefficients a, b, c from column ``64 * octave + segment`` of the table. No step can
    pass below zero or above 2**32. The distance from the exact quantile is below 2.4e-8 everywhere.
    """
    octave = (32 - np.frexp(values.astype(np.float64))[1]).astype(np.uint32)
    aligned = values << octave
    segment = (aligned >> np.uint32(25)) & np.uint32(63)
    rest = (aligned << np.uint32(7)).astype(np.uint64)
    a, b, c = normal_table()[:, octave * np.uint32(64) + segment].astype(np.uint64)
    half = np.uint64(32)
    magnitude = a - ((rest * (b - ((rest * c) >> half))) >> half)
    found: NDArray[np.uint32] = np.maximum(magnitude, 1).astype(np.uint32)
    return found


@cache
def normal_table() -> NDArray[np.uint32]:
    """Return the coefficients a, b, c of `normal_magnitudes`: uint32, ``(3, 2048)``, read-only.

    The table is part of the file format. ``tools/make_normal_table.py`` made it.

    Raises:
        SeedError: the installed table is not the one that the file format names.
    """
    resource = resources.files("pabzip.seeds").joinpath("normal_table.npy")
    with resource.open("rb") as file:
        table: NDArray[np.uint32] = np.load(file, allow_pickle=False)
    digest = hashlib.sha256(table.astype("<u4").tobytes()).hexdigest()
    if table.shape != (3, 2048) or digest != TABLE_SHA256:
        raise SeedError(
            f"normal_table.npy: expected SHA-256 {TABLE_SHA256}, found {digest}; reinstall pabzip"
        )
    table = np.ascontiguousarray(table, dtype=np.uint32)
    table.flags.writeable = False
    return table


_MAGNITUDES: Mapping[str, Callable[[NDArray[np.uint32]], NDArray[np.uint32]]] = check_backend(
    "numpy",
    {
        "normal": normal_magnitudes,
        "uniform": lambda values: values,
        "signed_constant": lambda values: np.ones_like(values),
    },
)


def _word_weights(words: NDArray[np.uint32], spec: InitSpec) -> NDArray[np.float32]:
    """Turn random words into weights: one rounding to float32, one multiplication, the sign."""
    positive = word_magnitudes(words, spec.distribution).astype(np.float32) * spec.factor
    return np.where(words >> np.uint32(31) == 1, -positive, positive)


def _chunks(count: int) -> list[tuple[int, int]]:
    """Cut ``count`` elements into ranges of bounded size."""
    return [(begin, min(begin + _CHUNK, count)) for begin in range(0, count, _CHUNK)]
