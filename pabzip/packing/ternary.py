"""Weights that are 0 and plus or minus one scale, packed as codes without having had a seed.

The scale is that of the tensor or of each output channel. As codes such weights take the coders,
the file and the loaders of any ticket.

Source: Ternary Weight Networks (Li, Zhang, Liu 2016), Section 2.1 (a scale a filter); BitNet b1.58
(Ma et al. 2024), Section 2 (a scale a matrix).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pabzip.formats import SeededTensor
from pabzip.seeds import InitSpec, weights
from pabzip.seeds.spec import MAX_SCALE, MIN_SCALE

LEAST_ROW = 16
"""Fewer weights a row than this do not pay for a scale of their own."""


def ternary_scales(values: NDArray[Any]) -> NDArray[np.float32] | None:
    """Return the scales of a tensor whose values are all 0 or plus or minus its scale.

    Args:
        values: (rows, ...), of any shape of at least two dimensions.

    Returns:
        float32: of no dimension if one scale is enough; (rows,) if each row has its own, 1 for a
        row of zeros, which needs rows of at least `LEAST_ROW` weights; None if the tensor is not
        ternary, not float32, all zeros, or a scale is out of an init spec's range.
    """
    if values.dtype != np.float32 or values.ndim < 2 or values.size == 0:
        return None
    sizes = np.abs(values.reshape(len(values), -1))
    rows = sizes.max(axis=1)  # not-a-number spreads, and is then refused
    active = rows[rows != 0]
    if not active.size or not np.all((active >= MIN_SCALE) & (active <= MAX_SCALE)):
        return None
    if not np.all((sizes == 0) | (sizes == rows[:, None])):
        return None
    if np.all(active == active[0]):
        return np.asarray(active[0], dtype=np.float32)
    if sizes.shape[1] < LEAST_ROW:
        return None
    return np.where(rows == 0, np.float32(1), rows).astype(np.float32)


def ternary_tensor(name: str, values: NDArray[Any], seed: int, stream: int) -> SeededTensor | None:
    """Return a ternary tensor with the codes that give it; None if it is not ternary.

    Args:
        name: the tensor's name.
        values: as for `ternary_scales`; -0.0 counts as 0, and loads as +0.0.
        seed: the ticket's seed, whose signs the codes are relative to.
        stream: of the tensor's init spec.
    """
    scales = ternary_scales(values)
    if scales is None:
        return None
    spec = InitSpec("signed_constant", float(scales) if scales.ndim == 0 else 1.0, stream)
    drawn = weights(seed, spec, 0, values.size).reshape(values.shape)
    codes = (np.sign(values) * np.sign(drawn)).astype(np.int8)
    return SeededTensor(name, spec, codes, scales if scales.ndim else None)
