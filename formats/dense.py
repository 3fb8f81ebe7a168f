"""Dense tensors: values that are stored as they are, or rounded to half precision.

Rounding is to nearest even, and the same on any machine: bfloat16 is the upper half of a float32,
so that it is integer arithmetic on bit patterns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError, PackError, shown
from pabzip.formats.kind import Coding, EntryKind, StoredKind
from pabzip.formats.limits import (
    DENSE_TYPES,
    HALF_TYPES,
    as_array,
    check_name_of,
    check_shape,
    is_variance,
    tensor_place,
)

if TYPE_CHECKING:
    from pabzip.formats.contents import Entry, Tensor

_WIDE = ("float64", "float32")

_BLOCK = 1 << 18  # values that are checked at a time: temporaries stay in the cache


@dataclass(frozen=True, slots=True)
class DenseEntry(EntryKind):
    """What a header says of a dense tensor.

    Its row is ``[name, shape, dtype, stored]``, and leaves ``stored`` out where it equals
    ``dtype``.

    Attributes:
        name: the tensor's name in the network's state.
        shape: its dimensions; ``()`` for a scalar.
        dtype: torch's name of the element type that a loader hands out.
        stored: the element type in the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored: str

    kind: ClassVar[str] = "dense"
    row_lengths: ClassVar[tuple[int, ...]] = (3, 4)
    survivors: ClassVar[None] = None

    @property
    def stored_bytes(self) -> int:
        """Bytes of the elements of the tensor in a dense section, before any compression."""
        return self.count * DENSE_TYPES[self.stored].itemsize

    @property
    def parts(self) -> tuple[DenseEntry, ...]:
        """The tensor itself."""
        return (self,)

    def check(self, place: str, earlier: Mapping[str, Entry]) -> None:
        """Check the shape and the element types."""
        check_shape(place, self.shape, lowest_rank=0)
        check_name_of("dtype", self.dtype, DENSE_TYPES, place)
        if self.stored == self.dtype:
            return
        check_name_of("stored dtype", self.stored, HALF_TYPES, place)
        if self.dtype not in _WIDE:
            raise FormatError(
                place, f"expected {self.dtype} stored as it is, found it stored as {self.stored}"
            )

    def to_row(self, coding: Coding | None) -> list[Any]:
        """Return the tensor's row."""
        row = [self.name, list(self.shape), self.dtype]
        return row if self.stored == self.dtype else [*row, self.stored]

    @classmethod
    def from_row(
        cls, place: str, row: list[Any], earlier: Mapping[str, Entry]
    ) -> tuple[DenseEntry, None] | None:
        """Return the entry of a row; None without a list for its shape."""
        if not isinstance(row[1], list):
            return None
        return cls(row[0], tuple(row[1]), dtype=row[2], stored=row[-1]), None

    def tensor(self, codes: NDArray[np.int8] | None, parts: Sequence[DenseTensor]) -> DenseTensor:
        """Return the tensor that the dense section holds."""
        return parts[0]


@dataclass(frozen=True, slots=True, eq=False)
class DenseTensor(StoredKind):
    """A tensor that is stored as it is.

    Attributes:
        name: the tensor's name in the network's state.
        values: C-contiguous, of the numpy type that `pabzip.formats.limits.DENSE_TYPES` gives
            for ``dtype``; bfloat16 values are carried as their uint16 bit patterns.
        dtype: torch's name of the element type, such as ``"float32"``: what a loader hands out.
        stored: the element type in the file: ``dtype`` itself, or ``"float16"`` or ``"bfloat16"``
            for a float32 or float64 tensor whose values that type holds exactly
            (`pabzip.formats.rounded` makes them so).
    """

    name: str
    values: NDArray[Any]
    dtype: str
    stored: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape; ``()`` for a scalar."""
        return self.values.shape

    @property
    def parts(self) -> tuple[DenseTensor, ...]:
        """The tensor itself."""
        return (self,)

    def tidy(self, place: str) -> DenseTensor:
        """Return the tensor with a checked array, of the type that ``dtype`` asks for."""
        if self.dtype not in DENSE_TYPES:
            raise FormatError(
                place,
                f"expected a known dtype ({', '.join(DENSE_TYPES)}), found {shown(self.dtype)}",
            )
        return replace(self, values=as_array(place, self.values, DENSE_TYPES[self.dtype].numpy))

    def entry(self, earlier: Mapping[str, Entry], seed: int = 0) -> DenseEntry:
        """Return what a header says of the tensor."""
        return DenseEntry(self.name, self.shape, self.dtype, self.stored)

    def check_values(self) -> None:
        """Check the values, for writer and reader alike.

        Floating values are finite, variances (``running_var``) are not negative, and a value
        survives its storage type.
        """
        if not DENSE_TYPES[self.dtype].floating:
            return
        place = tensor_place(self.name)
        bad = not_finite(self.values, self.dtype)
        if bad:
            raise FormatError(
                place,
                f"expected finite values, found {bad} that are not; no file holds NaN or infinity: "
                "leave such a tensor out of what is packed (a buffer: persistent=False)",
            )
        if is_variance(self.name):
            bits = self.dtype == "bfloat16"  # those above the pattern of -0.0 are negative
            below = sum(
                np.count_nonzero(block > 0x8000 if bits else block < 0)
                for block in _blocks(self.values)
            )
            if below:
                raise FormatError(place, f"expected variances of at least 0, found {below} below")
        if self.stored != self.dtype:
            lost = 0
            for block in _blocks(self.values):
                narrow = to_stored(block, self.dtype, self.stored)
                lost += int(np.count_nonzero(from_stored(narrow, self.dtype, self.stored) != block))
            if lost:
                raise FormatError(
                    place,
                    f"expected values that {self.stored} holds exactly, found {lost} that it does "
                    "not; round them with pabzip.formats.rounded",
                )

    def array(
        self, seed: int = 0, *, backend: str = "numba", threads: int | None = None
    ) -> NDArray[Any]:
        """Return the values; bfloat16 as uint16 bit patterns."""
        return self.values


def rounded(tensor: Tensor, dense_dtype: str | None) -> Tensor:
    """Return the tensor with its values rounded to what ``dense_dtype`` holds, and stored so.

    Args:
        tensor: only dense float32 and float64 ones change, and keep their ``dtype``.
        dense_dtype: ``"float16"``, ``"bfloat16"``, or None to change nothing.

    Raises:
        PackError: a value overflows to infinity (the message names the tensor and the count), or
            there is no such ``dense_dtype``.
    """
    check_dense_dtype(dense_dtype)
    if dense_dtype is None or not isinstance(tensor, DenseTensor) or tensor.dtype not in _WIDE:
        return tensor
    narrow = to_stored(tensor.values, tensor.dtype, dense_dtype)
    overflows = not_finite(narrow, dense_dtype)
    if overflows:
        raise PackError(
            f"{tensor_place(tensor.name)}: expected values within the range of {dense_dtype}, "
            f"found {overflows} that overflow; store dense tensors lossless, or as bfloat16"
        )
    values = from_stored(narrow, tensor.dtype, dense_dtype)
    return replace(tensor, values=values, stored=dense_dtype)


def by_type(stored: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    """Yield each element type, by first appearance, with the places of its tensors."""
    for name in dict.fromkeys(stored):
        yield name, [at for at, other in enumerate(stored) if other == name]


def joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return the elements of several arrays, one after the other; of one without a copy."""
    if len(arrays) == 1:
        return arrays[0].reshape(-1)
    return np.concatenate([array.reshape(-1) for array in arrays])


def check_dense_dtype(dense_dtype: str | None) -> None:
    """Refuse what dense tensors cannot be rounded to, with a PackError."""
    if dense_dtype is not None and dense_dtype not in HALF_TYPES:
        raise PackError(
            f"dense_dtype: expected None or one of {', '.join(HALF_TYPES)}, "
            f"found {shown(dense_dtype)}"
        )


def to_stored(values: NDArray[Any], dtype: str, stored: str) -> NDArray[Any]:
    """Round values of ``dtype`` to nearest even in ``stored``; overflow becomes infinity."""
    if dtype == stored:
        return values
    return _converted(values, stored, lambda block: _narrowed(block, dtype, stored))


def from_stored(values: NDArray[Any], dtype: str, stored: str) -> NDArray[Any]:
    """Widen values of ``stored`` to ``dtype``, exactly."""
    if dtype == stored:
        return values
    widen = bfloat16_to_float32 if stored == "bfloat16" else np.asarray
    return _converted(values, dtype, widen)


def _converted(
    values: NDArray[Any], dtype: str, convert: Callable[[NDArray[Any]], NDArray[Any]]
) -> NDArray[Any]:
    """Return values of another type, converted a block at a time."""
    result = np.empty(values.shape, dtype=DENSE_TYPES[dtype].numpy)
    flat = result.reshape(-1)
    for number, block in enumerate(_blocks(values)):
        flat[number * _BLOCK :][: block.size] = convert(block)
    return result


def _narrowed(values: NDArray[Any], dtype: str, stored: str) -> NDArray[Any]:
    """Round a block of float32 or float64 to half precision."""
    if stored == "float16":
        with np.errstate(over="ignore", under="ignore"):
            return values.astype(DENSE_TYPES["float16"].numpy)
    single = values if dtype == "float32" else _round_to_odd(values)
    bits = np.asarray(single, dtype="<f4").view("<u4")
    odd = (bits >> np.uint32(16)) & np.uint32(1)  # ties go to the even bit pattern
    return np.asarray((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype("<u2")


def bfloat16_to_float32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the float32 values of bfloat16 bit patterns, exactly."""
    wide = np.asarray(bits).astype("<u4") << np.uint32(16)
    return np.asarray(wide, dtype="<u4").view("<f4")


def not_finite(values: NDArray[Any], dtype: str) -> int:
    """Return how many values of a floating ``dtype`` are not finite; bfloat16 as bit patterns."""
    count = 0
    for block in _blocks(values):
        if dtype == "bfloat16":
            count += int(np.count_nonzero((block & np.uint16(0x7F80)) == np.uint16(0x7F80)))
        else:
            count += block.size - int(np.count_nonzero(np.isfinite(block)))
    return count


def _blocks(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield the values a block at a time, flat, so that temporaries stay small."""
    flat = values.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        yield flat[start : start + _BLOCK]


def _round_to_odd(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Cut float64 to float32 with the last bit set where anything was lost.

    A second rounding to nearest then never sees a false tie, which rounding to nearest twice can.
    """
    with np.errstate(over="ignore", under="ignore"):
        nearest = np.asarray(values, dtype="<f8").astype("<f4")
    bits = nearest.view("<u4")
    away = np.abs(nearest).astype("<f8") > np.abs(values)
    inexact = nearest.astype("<f8") != values
    return np.asarray((bits - away.astype("<u4")) | inexact.astype("<u4")).view("<f4")
