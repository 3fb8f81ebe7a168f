"""How a tensor is drawn: distributions, schemes and the spec that a file stores.

The scale is computed once, in float64, and rounded once to float32. It is stored with the ticket
and never computed again, so these formulas are no part of the file format.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import SupportsFloat, SupportsIndex, TypeVar

import numpy as np

from pabzip.errors import SeedError

FRACTION_BITS = {"normal": 28, "uniform": 32, "signed_constant": 0}
"""The distributions of the base weights, each with the bits after a magnitude's binary point."""

DISTRIBUTIONS = tuple(FRACTION_BITS)
"""The names of the distributions. Each backend has an entry for each (`check_backend`)."""

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
        if self.distribution not in DISTRIBUTIONS:
            raise SeedError(
                f"distribution: expected one of {', '.join(DISTRIBUTIONS)}, found "
                f"{self.distribution!r}"
            )
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


Entry = TypeVar("Entry")


def check_backend(backend: str, entries: Mapping[str, Entry]) -> Mapping[str, Entry]:
    """Return ``entries`` if they are one for each of `DISTRIBUTIONS`, and no others.

    Raises:
        SeedError: they are not; a backend without an entry would have to guess.
    """
    if set(entries) != set(DISTRIBUTIONS):
        raise SeedError(
            f"{backend} backend: expected an entry for each of {', '.join(DISTRIBUTIONS)}, found "
            f"{', '.join(entries)}"
        )
    return entries


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


SCHEMES = (
    "kaiming_normal",
    "kaiming_uniform",
    "kaiming_signed_constant",
    "xavier_normal",
    "xavier_uniform",
    "torch_default",
)
"""The schemes that `scheme_spec` knows."""

MODES = ("fan_in", "fan_out")


def scheme_spec(
    scheme: str,
    shape: Sequence[int],
    *,
    stream: int,
    mode: str = "fan_in",
    gain: float | None = None,
) -> InitSpec:
    """Return the init spec of a Conv or Linear weight under a scheme.

    With std the standard deviation and U(bound) uniform on (-bound, bound):

    ========================= ====================================================
    ``kaiming_normal``        normal, std = gain / sqrt(fan)
    ``kaiming_uniform``       U(sqrt(3) * gain / sqrt(fan))
    ``kaiming_signed_constant`` +- gain / sqrt(fan)
    ``xavier_normal``         normal, std = gain * sqrt(2 / (fan_in + fan_out))
    ``xavier_uniform``        U(gain * sqrt(6 / (fan_in + fan_out)))
    ``torch_default``         U(1 / sqrt(fan_in)), as torch's own Linear and Conv
    ========================= ====================================================

    Args:
        scheme: one of `SCHEMES`.
        shape: the weight's shape, two dimensions or more. Fans follow ``torch.nn.init``:
            fan_in = shape[1] * receptive field, fan_out = shape[0] * receptive field, also for
            transposed convolutions.
        stream: the tensor's random stream, ``0 <= stream < 2**32``.
        mode: ``"fan_in"`` or ``"fan_out"``; the kaiming schemes alone know the latter.
        gain: default sqrt(2) (kaiming) or 1 (xavier); ``torch_default`` takes none.

    Raises:
        SeedError: unknown scheme or mode, a shape without fans, an option that the scheme does
            not have, or a scale outside float32's safe range.

    Source: kaiming: He et al., "Delving deep into rectifiers" (ICCV 2015), Section 2.2; xavier:
    Glorot and Bengio (AISTATS 2010), equations 12 and 16; signed constant: Ramanujan et al.,
    "What's hidden in a randomly weighted neural network?" (CVPR 2020), Section 3.2.
    """
    if scheme not in SCHEMES:
        raise SeedError(f"scheme: expected one of {', '.join(SCHEMES)}, found {scheme!r}")
    if mode not in MODES:
        raise SeedError(f"mode: expected one of {', '.join(MODES)}, found {mode!r}")
    number = isinstance(gain, SupportsFloat)
    if gain is not None and not (number and math.isfinite(gain) and gain > 0):
        raise SeedError(f"gain: expected a finite number above 0, found {gain!r}")
    fan_in, fan_out = fans(shape)
    family, _, distribution = scheme.partition("_")
    if family != "kaiming" and mode != "fan_in":
        raise SeedError(f"mode: {scheme} has none, found {mode!r}; use a kaiming scheme")
    if family == "torch":
        if gain is not None:
            raise SeedError(f"gain: {scheme} has none, found {gain!r}; use kaiming_uniform")
        return _spec("uniform", 1.0 / math.sqrt(fan_in), stream)
    if family == "kaiming":
        deviation = (math.sqrt(2.0) if gain is None else gain) / math.sqrt(
            fan_in if mode == "fan_in" else fan_out
        )
    else:
        deviation = (1.0 if gain is None else gain) * math.sqrt(2.0 / (fan_in + fan_out))
    scale = math.sqrt(3.0) * deviation if distribution == "uniform" else deviation
    return _spec(distribution, scale, stream)


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """Return (fan_in, fan_out) of a weight of ``shape``, by the convention of ``torch.nn.init``.

    Raises:
        SeedError: fewer than two dimensions, or an empty one.
    """
    if len(shape) < 2 or min(shape) < 1:
        raise SeedError(
            "shape: expected two or more dimensions of at least 1 (outputs, inputs, ...), "
            f"found {tuple(shape)}; keep this tensor dense"
        )
    receptive_field = math.prod(int(size) for size in shape[2:])
    return int(shape[1]) * receptive_field, int(shape[0]) * receptive_field


def _spec(distribution: str, scale: float, stream: int) -> InitSpec:
    """Round ``scale`` once to float32 and return the spec."""
    with np.errstate(over="ignore", under="ignore"):
        return InitSpec(distribution, float(np.float32(scale)), stream)
