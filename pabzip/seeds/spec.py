"""What a seeded tensor is drawn from: the init spec, and the checks of its numbers."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np

from pabzip.errors import SeedError

DISTRIBUTIONS = ("normal", "uniform", "signed_constant")
"""The distributions of the base weights, before the scale."""

FRACTION_BITS = {"normal": 28, "uniform": 32, "signed_constant": 0}
"""Bits after the binary point of a magnitude, by distribution."""

MAX_SEED = 2**64 - 1
MAX_STREAM = 2**32 - 1
MIN_SCALE = 2.0**-64
MAX_SCALE = 2.0**64


@dataclass(frozen=True, slots=True)
class InitSpec:
    """How one tensor is drawn from a seed.

    A weight is ``sign * magnitude * scale``, where sign and magnitude are a function of the seed,
    the stream and the weight's place in the tensor alone.

    Attributes:
        distribution: one of `DISTRIBUTIONS`. The base magnitudes are the absolute value of a
            standard normal, uniform on (0, 1), or 1.
        scale: standard deviation (normal), bound (uniform) or absolute value (signed constant) of
            the weights; a float32 value, ``2**-64 <= scale <= 2**64``, so that all arithmetic
            that involves it stays exact up to the one final rounding.
        stream: number of the tensor's own random stream, ``0 <= stream < 2**32``. Two tensors of
            one seed must have different streams, or their weights repeat.

    Raises:
        SeedError: a value out of range; the message names it.
    """

    distribution: str
    scale: float
    stream: int

    def __post_init__(self) -> None:
        check_distribution(self.distribution)
        object.__setattr__(self, "scale", check_scale(self.scale))
        object.__setattr__(self, "stream", _check_integer("stream", self.stream, MAX_STREAM))

    @property
    def factor(self) -> np.float32:
        """``scale * 2**-fraction_bits``, exact: what an integer magnitude is multiplied by."""
        return np.float32(self.scale * 2.0 ** -FRACTION_BITS[self.distribution])


def check_seed(seed: SupportsIndex) -> int:
    """Return ``seed`` as a plain int, after a check that it is a 64-bit Philox key.

    Raises:
        SeedError: not an integer (bool and float are refused), or not in ``0 <= seed < 2**64``.
    """
    return _check_integer("seed", seed, MAX_SEED)


def check_distribution(distribution: str) -> str:
    """Return ``distribution`` if it is one of `DISTRIBUTIONS`.

    Raises:
        SeedError: it is not; the message lists the valid ones.
    """
    if distribution not in DISTRIBUTIONS:
        raise SeedError(
            f"distribution: expected one of {', '.join(DISTRIBUTIONS)}, found {distribution!r}"
        )
    return distribution


def check_scale(scale: float) -> float:
    """Return ``scale`` as a plain float, after a check that it can be stored and used exactly.

    Raises:
        SeedError: not a number, not in ``2**-64 <= scale <= 2**64``, or not a float32 value.
    """
    if isinstance(scale, bool | np.bool_) or not isinstance(
        scale, int | float | np.floating | np.integer
    ):
        raise SeedError(f"scale: expected a float32 value, found {scale!r}")
    value = float(scale)
    if not MIN_SCALE <= value <= MAX_SCALE:  # also refuses NaN
        raise SeedError(f"scale: expected 2**-64 <= scale <= 2**64, found {value!r}")
    if float(np.float32(value)) != value:
        raise SeedError(
            f"scale: expected a float32 value, found {value!r}; round it once with numpy.float32"
        )
    return value


def _check_integer(name: str, value: SupportsIndex, maximum: int) -> int:
    """Return ``value`` as int if it is an integer with ``0 <= value <= maximum``."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise SeedError(
            f"{name}: expected an integer from 0 to {maximum}, found {value!r} "
            f"of type {type(value).__name__}"
        ) from None
    if not 0 <= number <= maximum:
        raise SeedError(f"{name}: expected an integer from 0 to {maximum}, found {number}")
    return number
