"""Delta tensors: what changed between a tensor of another file, the base, and a fine-tuned one.

The forms of a change are those of `pabzip.formats.delta_changes`. Codes, step sizes and differences
are dense tensors, and coded as such.

Source: formats/SPEC.md, section "Deltas".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import BaseFileError, FormatError
from pabzip.formats.delta_changes import (
    MAX_STEPS,
    Change,
    differing,
    stepped,
    working_type,
)
from pabzip.formats.dense import DenseEntry, DenseTensor, not_finite
from pabzip.formats.kind import Coding, EntryKind, StoredKind
from pabzip.formats.limits import (
    DENSE_TYPES,
    HALF_TYPES,
    as_array,
    check_name_of,
    check_shape,
    tensor_place,
)
from pabzip.formats.ternary_layouts import packed_size

if TYPE_CHECKING:
    from pabzip.formats.contents import Entry

_DIFFERENCE_TYPES = ("uint8", "int16", "int32", "int64")
_BLOCK = 1 << 20  # elements changed at a time, so that a large tensor needs few copies of itself


@dataclass(frozen=True, slots=True)
class DeltaEntry(EntryKind):
    """What a header says of a delta.

    Its row is ``[name, shape, dtype, "delta", detail]``.

    Attributes:
        name: the tensor's name, in the network's state and in the base.
        shape: its dimensions, those of the base's; ``()`` for a scalar.
        dtype: torch's name of the element type, of both.
        change: how the elements are made.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    change: Change

    kind: ClassVar[str] = "delta"
    row_lengths: ClassVar[tuple[int, ...]] = (5,)
    survivors: ClassVar[None] = None

    @property
    def version(self) -> int:
        """The format version that brought deltas."""
        return 3

    @property
    def based(self) -> bool:
        """Every delta changes a tensor of the base."""
        return True

    @property
    def expanded_bytes(self) -> int:
        """Those of its parts; the rest is the base's."""
        return sum(part.loaded_bytes for part in self.parts)

    @property
    def parts(self) -> tuple[DenseEntry, ...]:
        """The stored numbers, flat, and then the step sizes if there are any."""
        if self.change.form == "equal":
            return ()
        stored = self.change.stored
        kind, size = (
            ("uint8", packed_size(self.count)) if stored == "trits" else (stored, self.count)
        )
        numbers = DenseEntry(self.name, (size,), kind, kind)
        if self.change.form == "difference":
            return (numbers,)
        scale = working_type(self.dtype)
        rows = self.shape[:1] if self.change.rows else ()
        return (numbers, DenseEntry(self.name, rows, scale, scale))

    def check(self, place: str, earlier: Mapping[str, Entry]) -> None:
        """Check the shape, the type, and that the change suits both."""
        check_shape(place, self.shape, lowest_rank=0)
        check_name_of("dtype", self.dtype, DENSE_TYPES, place)
        if self.change.form == "difference":
            check_name_of("type of differences", self.change.stored, _DIFFERENCE_TYPES, place)
            if DENSE_TYPES[self.change.stored].itemsize > DENSE_TYPES[self.dtype].itemsize:
                raise FormatError(
                    place,
                    f"expected differences no wider than {self.dtype}, found {self.change.stored}",
                )
        if self.change.form == "steps":
            self._check_steps(place)

    def _check_steps(self, place: str) -> None:
        """Check that a tensor can be of the form ``steps``."""
        if not DENSE_TYPES[self.dtype].floating:
            raise FormatError(place, f"expected steps of a floating type, found {self.dtype}")
        if self.change.rows and not self.shape:
            raise FormatError(place, "expected rows with step sizes of their own, found a scalar")
        check_name_of("form of steps", self.change.stored, ("int8", "trits"), place)
        known = {working_type(self.dtype): None}
        if self.dtype in HALF_TYPES:
            known[self.dtype] = None
        check_name_of("type of a product", self.change.product, known, place)

    def to_row(self, coding: Coding | None) -> list[Any]:
        """Return the tensor's row."""
        return [self.name, list(self.shape), self.dtype, "delta", self.change.to_detail()]

    @classmethod
    def from_row(
        cls, place: str, row: list[Any], earlier: Mapping[str, Entry]
    ) -> tuple[DeltaEntry, None] | None:
        """Return the entry of a row; None for a row of another kind."""
        if row[3] != "delta" or not isinstance(row[1], list):
            return None
        return cls(row[0], tuple(row[1]), row[2], Change.from_detail(place, row[4])), None

    def tensor(self, codes: NDArray[np.int8] | None, parts: Sequence[DenseTensor]) -> DeltaTensor:
        """Return the tensor that the dense sections hold, without its base."""
        numbers, scales = (*(part.values for part in parts), None, None)[:2]
        made = DeltaTensor(self.name, self.shape, self.dtype, self.change, numbers, scales)
        made.check_values()
        return made


@dataclass(frozen=True, slots=True, eq=False)
class DeltaTensor(StoredKind):
    """A tensor as a change of the one of the same name in a base.

    Attributes:
        name: the tensor's name in the network's state; what is changed has the name that the
            tensor was made with.
        shape: its dimensions, those of the base's.
        dtype: torch's name of the element type, of both.
        change: how the elements are made.
        numbers: flat, one an element, C-contiguous; of steps int8, how many, -127 to 127, or five
            a byte, uint8; of differences the type that ``change.stored`` names; None where nothing
            changed.
        scales: of steps, their sizes in the working type (`working_type`), of shape () or (rows,);
            else None.
        base: returns the base's tensor, of ``shape``, in the numpy type that
            `pabzip.formats.limits.DENSE_TYPES` gives for ``dtype``; None if it is not at hand.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    change: Change
    numbers: NDArray[Any] | None = None
    scales: NDArray[Any] | None = None
    base: Callable[[], NDArray[Any]] | None = None

    @property
    def parts(self) -> tuple[DenseTensor, ...]:
        """The stored numbers, and then the step sizes if there are any."""
        arrays = [array for array in (self.numbers, self.scales) if array is not None]
        return tuple(
            DenseTensor(self.name, array, part.dtype, part.dtype)
            for array, part in zip(arrays, self.entry({}).parts, strict=True)
        )

    def tidy(self, place: str) -> DeltaTensor:
        """Return the tensor with checked arrays, of the types and sizes that its change needs."""
        entry = self.entry({})
        entry.check(place, {})
        found = [part for part in (self.numbers, self.scales) if part is not None]
        if len(found) != len(entry.parts):
            raise FormatError(
                place,
                f"expected {len(entry.parts)} arrays for a change of form {self.change.form}, "
                f"found {len(found)}",
            )
        arrays: list[NDArray[Any] | None] = []
        for part, array in zip(entry.parts, found, strict=True):
            arrays.append(as_array(place, array, DENSE_TYPES[part.dtype].numpy))
            if arrays[-1].shape != part.shape:  # type: ignore[union-attr]
                raise FormatError(
                    place,
                    f"expected {list(part.shape)} numbers of type {part.dtype}, found "
                    f"{list(array.shape)}",
                )
        numbers, scales = (*arrays, None, None)[:2]
        return replace(self, numbers=numbers, scales=scales)

    def entry(self, earlier: Mapping[str, Entry], seed: int = 0) -> DeltaEntry:
        """Return what a header says of the tensor."""
        return DeltaEntry(self.name, self.shape, self.dtype, self.change)

    def check_values(self) -> None:
        """Check the numbers of steps and their sizes, for writer and reader alike."""
        if self.scales is None or self.numbers is None:
            return
        place = tensor_place(self.name)
        bad = int(np.count_nonzero(~(np.isfinite(self.scales) & (self.scales >= 0))))
        if bad:
            raise FormatError(
                place, f"expected finite step sizes of at least 0, found {bad} others"
            )
        if self.change.stored == "trits":
            from pabzip.formats.trits import count_packed, tail_symbols

            tail = tail_symbols(self.numbers, 5, self.entry({}).count)
            wrong = int(count_packed(self.numbers, 5)[1]) + int(np.count_nonzero(tail))
            if wrong:
                raise FormatError(place, f"expected five trits a byte, found {wrong} other bytes")
            return
        wrong = int(np.count_nonzero(self.numbers < -MAX_STEPS))
        if wrong:
            raise FormatError(
                place, f"expected -{MAX_STEPS} to {MAX_STEPS} steps, found {wrong} others"
            )

    def on_base(self, read: Callable[[], NDArray[Any]]) -> DeltaTensor:
        """Return the tensor with a way to read the one that it changes."""
        return replace(self, base=read)

    def array(
        self, seed: int = 0, *, backend: str = "numba", threads: int | None = None
    ) -> NDArray[Any]:
        """Return the changed tensor, in memory of its own; bfloat16 as uint16 bit patterns.

        Raises:
            BaseFileError: the base is not at hand, or another than the tensor was made with.
            FormatError: the change makes values that no tensor may have.
        """
        values = self.based_values()
        if self.numbers is None:
            values = values.copy()
        else:
            made = np.empty(values.size, dtype=values.dtype)
            for start in range(0, values.size, _BLOCK):
                made[start : start + _BLOCK] = self._block(values.reshape(-1), start, backend)
            values = made.reshape(self.shape)
        DenseTensor(self.name, values, self.dtype, self.dtype).check_values()
        return values

    def based_values(self) -> NDArray[Any]:
        """Return the base's tensor; raises BaseFileError as `array` does."""
        if self.base is None:
            raise BaseFileError(
                f"{tensor_place(self.name)}: expected the base that it changes, found none; give "
                "it with base=... (on the command line --base FILE)"
            )
        return self.base()

    def _block(self, base: NDArray[Any], start: int, backend: str) -> NDArray[Any]:
        """Return some of the changed elements, from ``start``."""
        assert self.numbers is not None
        base = base[start : start + _BLOCK]
        if self.change.stored == "trits":
            from pabzip.formats.ternary_weights import loops

            numbers = np.empty(len(base), dtype=np.int8)
            loops(backend).unpack_codes(self.numbers, 5, start, numbers)
        else:
            numbers = self.numbers[start : start + _BLOCK]
        if self.change.form == "difference":
            return differing(base, numbers, self.dtype, self.name)
        assert self.scales is not None
        if not_finite(base, self.dtype):
            raise FormatError(tensor_place(self.name), "expected a finite base, found other values")
        scales = self.scales
        if self.change.rows:
            size = math.prod(self.shape[1:])
            scales = scales[np.arange(start, start + len(base)) // size]
        return stepped(base, numbers, scales, self.dtype, self.change)
