"""The two kinds of tensor in a ticket: seeded ones carry codes, dense ones carry values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pabzip.seeds import InitSpec


@dataclass(frozen=True, slots=True, eq=False)
class SeededTensor:
    """A weight that its seed, its init spec and one code a weight determine.

    Attributes:
        name: the parameter's name in the network's state.
        spec: how the base weights are drawn.
        codes: int8, C-contiguous, the shape of the weight: 0 pruned, +1 the seed's sign kept,
            -1 flipped.

    Source: Peek-a-Boo, Appendix D (one code merges the mask and the sign flip).
    """

    name: str
    spec: InitSpec
    codes: NDArray[np.int8]

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return self.codes.shape


@dataclass(frozen=True, slots=True, eq=False)
class DenseTensor:
    """A tensor that is stored as it is.

    Attributes:
        name: the tensor's name in the network's state.
        values: C-contiguous, of the numpy type that `pabzip.formats.registry.DENSE_TYPES` gives
            for ``dtype``; bfloat16 values are carried as their uint16 bit patterns.
        dtype: torch's name of the element type, such as ``"float32"``: what a loader hands out.
        stored: the element type in the file: ``dtype`` itself, or ``"float16"`` or ``"bfloat16"``
            for a float32 or float64 tensor whose values that type holds exactly
            (`pabzip.formats.half.rounded` makes them so).
    """

    name: str
    values: NDArray[Any]
    dtype: str
    stored: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape; ``()`` for a scalar."""
        return self.values.shape


Tensor = SeededTensor | DenseTensor
