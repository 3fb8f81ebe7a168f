"""Tensors in memory to what a header says of them, checked as a file's would be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pabzip.errors import FormatError
from pabzip.formats.checks import shown
from pabzip.formats.dense import check_values
from pabzip.formats.entries import Contents, DenseEntry, Entry, Scalar, SeededEntry, TiedEntry
from pabzip.formats.registry import DENSE_TYPES
from pabzip.formats.scales import check_scales
from pabzip.formats.tensors import DenseTensor, SeededTensor, Tensor, TiedTensor
from pabzip.formats.validate import check_contents, tied_target
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
    entries: dict[str, Entry] = {}
    listed = []
    for tensor in held:
        listed.append(_entry(tensor, entries))
        if isinstance(tensor.name, str):  # the validator refuses other names
            entries.setdefault(tensor.name, listed[-1])
    contents = Contents(check_seed(seed), arch, dict(options), dict(metadata), tuple(listed))
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
        return SeededTensor(tensor.name, tensor.spec, codes, _scales(place, tensor))
    if isinstance(tensor, DenseTensor):
        if tensor.dtype not in DENSE_TYPES:
            raise FormatError(
                place,
                f"expected a known dtype ({', '.join(DENSE_TYPES)}), found {shown(tensor.dtype)}",
            )
        values = _array(place, tensor.values, DENSE_TYPES[tensor.dtype].numpy)
        return DenseTensor(tensor.name, values, tensor.dtype, tensor.stored)
    if isinstance(tensor, TiedTensor):
        return tensor
    raise FormatError(
        "tensors",
        f"expected SeededTensor, DenseTensor or TiedTensor, found {type(tensor).__name__}",
    )


def _scales(place: str, tensor: SeededTensor) -> Any:
    """Return a seeded tensor's scales, checked, or None."""
    if tensor.scales is None:
        return None
    scales = _array(place, tensor.scales, np.dtype(np.float32))
    if scales.shape != tensor.codes.shape[:1] or not scales.shape:
        raise FormatError(
            place,
            f"expected one scale a row, shape {list(tensor.codes.shape[:1])}, found "
            f"{list(scales.shape)}",
        )
    return check_scales(tensor.name, scales)


def _array(place: str, array: Any, expected: np.dtype[Any]) -> Any:
    """Return an array as C-contiguous and in the file's byte order; its type must be right."""
    if not isinstance(array, np.ndarray) or not np.can_cast(array.dtype, expected, "equiv"):
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise FormatError(place, f"expected a numpy array of {expected.name}, found {found}")
    return np.asarray(array, dtype=expected, order="C")


def _entry(tensor: Tensor, earlier: Mapping[str, Entry]) -> Entry:
    """Describe one tensor, given those before it."""
    if isinstance(tensor, TiedTensor):
        place = f"tensor {shown(tensor.name)}"
        return TiedEntry(tensor.name, tied_target(place, tensor.name, tensor.target, earlier))
    if isinstance(tensor, SeededTensor):
        survivors = int(np.count_nonzero(tensor.codes))
        scaled = tensor.scales is not None
        return SeededEntry(tensor.name, tensor.shape, tensor.spec, survivors, scaled)
    return DenseEntry(tensor.name, tensor.shape, tensor.dtype, tensor.stored)
