"""Tensors in memory to what a header says of them, checked as a file's would be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pabzip.errors import FormatError
from pabzip.formats.checks import shown
from pabzip.formats.dense import check_values
from pabzip.formats.entries import Contents, DenseEntry, Entry, Scalar, SeededEntry
from pabzip.formats.registry import DENSE_TYPES
from pabzip.formats.tensors import DenseTensor, SeededTensor, Tensor
from pabzip.formats.validate import check_contents
from pabzip.seeds import check_seed


def gather(
    seed: int,
    tensors: Iterable[Tensor],
    arch: str,
    options: Mapping[str, Scalar],
    metadata: Mapping[str, Scalar],
) -> tuple[Contents, list[Tensor]]:
    """Check tensors and describe them; arguments as for `pabzip.Ticket`.

    Returns:
        The contents, and the tensors with little-endian, C-contiguous arrays (copied only where
        they are not so already).

    Raises:
        FormatError: a rule of the format is broken; the message names the tensor.
        SeedError: the seed is not a 64-bit key.
    """
    held = [_tidy(tensor) for tensor in tensors]
    entries = tuple(_entry(tensor) for tensor in held)
    contents = Contents(check_seed(seed), arch, dict(options), dict(metadata), entries)
    check_contents(contents)
    for tensor in held:
        if isinstance(tensor, DenseTensor):
            check_values(tensor)
    return contents, held


def _tidy(tensor: Tensor) -> Tensor:
    """Return a tensor whose array is of exactly the type that it must have."""
    place = f"tensor {shown(getattr(tensor, 'name', None))}"
    if isinstance(tensor, SeededTensor):
        codes = _array(place, tensor.codes, np.dtype(np.int8))
        wrong = int(np.count_nonzero((codes < -1) | (codes > 1)))
        if wrong:
            raise FormatError(place, f"expected codes 0, +1 and -1, found {wrong} others")
        return SeededTensor(tensor.name, tensor.spec, codes)
    if isinstance(tensor, DenseTensor):
        if tensor.dtype not in DENSE_TYPES:
            raise FormatError(
                place,
                f"expected a known dtype ({', '.join(DENSE_TYPES)}), found {shown(tensor.dtype)}",
            )
        values = _array(place, tensor.values, DENSE_TYPES[tensor.dtype].numpy)
        return DenseTensor(tensor.name, values, tensor.dtype, tensor.stored)
    raise FormatError(
        "tensors", f"expected SeededTensor or DenseTensor, found {type(tensor).__name__}"
    )


def _array(place: str, array: Any, expected: np.dtype[Any]) -> Any:
    """Return an array as C-contiguous and in the file's byte order; its type must be right."""
    if not isinstance(array, np.ndarray) or not np.can_cast(array.dtype, expected, "equiv"):
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise FormatError(place, f"expected a numpy array of {expected.name}, found {found}")
    return np.asarray(array, dtype=expected, order="C")


def _entry(tensor: Tensor) -> Entry:
    """Describe one tensor."""
    if isinstance(tensor, SeededTensor):
        survivors = int(np.count_nonzero(tensor.codes))
        return SeededEntry(tensor.name, tensor.shape, tensor.spec, survivors)
    return DenseEntry(tensor.name, tensor.shape, tensor.dtype, tensor.stored)
