"""The tensors of a ticket: seeded ones carry codes, dense ones values, tied ones only a name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
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
        scales: None, or float32 (rows,), one for each row along the first dimension, which its
            weights are multiplied by. Only with ``signed_constant`` of scale 1: the weights of
            row r are then 0 and plus or minus ``scales[r]``.

    Source: Peek-a-Boo, Appendix D (one code merges the mask and the sign flip).
    """

    name: str
    spec: InitSpec
    codes: NDArray[np.int8]
    scales: NDArray[np.float32] | None = None

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


StoredTensor = SeededTensor | DenseTensor


@dataclass(frozen=True, slots=True)
class TiedTensor:
    """A second name of an earlier tensor, as of a weight that two layers share.

    Attributes:
        name: the second name in the network's state.
        target: name of an earlier tensor that is not tied itself.
    """

    name: str
    target: str


Tensor = StoredTensor | TiedTensor


def resolved(tensors: Mapping[str, Tensor]) -> Iterator[StoredTensor]:
    """Yield every tensor of a ticket, in order: of a tied one the target, under the tied name.

    Args:
        tensors: by name; may be lazy, and is asked for one tensor at a time.
    """
    for name in tensors:
        yield resolve(tensors, name)


def resolve(tensors: Mapping[str, Tensor], name: str) -> StoredTensor:
    """Return one tensor of a ticket; of a tied one the target, under the tied name.

    Raises:
        KeyError: no tensor of this name.
    """
    tensor = tensors[name]
    if not isinstance(tensor, TiedTensor):
        return tensor
    target = tensors[tensor.target]
    if isinstance(target, TiedTensor):  # no checked ticket holds one
        raise KeyError(f"{name}: expected {tensor.target} to be no tied tensor itself")
    return replace(target, name=name)
