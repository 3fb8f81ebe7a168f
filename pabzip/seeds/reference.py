"""The numpy backend: the definition of every weight, written to be read rather than to be fast."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from pabzip.seeds import normal_table, philox
from pabzip.seeds.spec import InitSpec, check_backend

_CHUNK = 1 << 16  # elements at a time: bounds the temporaries


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
    """Return the normal quantile of odd 32-bit values; see `pabzip.seeds.normal_table`."""
    octave = (32 - np.frexp(values.astype(np.float64))[1]).astype(np.uint32)
    aligned = values << octave
    segment = (aligned >> np.uint32(25)) & np.uint32(63)
    rest = (aligned << np.uint32(7)).astype(np.uint64)
    a, b, c = normal_table.load()[:, octave * np.uint32(64) + segment].astype(np.uint64)
    half = np.uint64(32)
    magnitude = a - ((rest * (b - ((rest * c) >> half))) >> half)
    found: NDArray[np.uint32] = np.maximum(magnitude, 1).astype(np.uint32)
    return found


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
