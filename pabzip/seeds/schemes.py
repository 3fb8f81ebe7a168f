"""Init schemes: from the name of a scheme and a weight's shape to its init spec.

The scale is computed once, in float64, and rounded once to float32. It is stored with the ticket
and never computed again, so these formulas are no part of the file format.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pabzip.errors import SeedError
from pabzip.seeds.spec import InitSpec

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
    if gain is not None and not (math.isfinite(gain) and gain > 0):
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
