"""Delta tensors: what changed between a tensor of another file, the base, and a fine-tuned one.

A change is one of three forms. ``equal``: nothing changed. ``steps``: each element is the base's
plus a whole number of steps, rounded as the element type rounds, with one step size for the tensor
or for each row; fine-tunes whose change was quantized (ComPEFT: to 0 and plus or minus one scale)
are of this form. ``difference``: any other change, as differences of the elements' bit patterns in
the order of their values, which are small whole numbers where the values moved little.

Codes, step sizes and differences are dense tensors, and coded as such.

Source: formats/SPEC.md, section "Deltas". ComPEFT (Yadav, Choshen, Raffel, Bansal 2023,
arXiv 2311.13171), Section 2: top-k signs of the task vector times one scalar.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import BaseFileError, FormatError, shown
from pabzip.formats.dense import DenseEntry, DenseTensor, from_stored, not_finite, to_stored
from pabzip.formats.digest import StateDigest
from pabzip.formats.kind import Coding, EntryKind, StoredKind
from pabzip.formats.limits import (
    DENSE_TYPES,
    HALF_TYPES,
    as_array,
    check_name_of,
    check_shape,
    tensor_place,
)

if TYPE_CHECKING:
    from pabzip.formats.contents import Entry, Tensor

FORMS = ("equal", "steps", "difference")
MAX_STEPS = 127
"""Most steps that an element may be away from the base's, either way."""

_DIFFERENCE_TYPES = ("uint8", "int16", "int32", "int64")
_BLOCK = 1 << 20  # elements changed at a time, so that a large tensor needs few copies of itself


class Base(Protocol):
    """The tensors that deltas change, wherever they are."""

    def read(self, name: str) -> tuple[str, NDArray[Any]] | None:
        """Return a tensor's dtype and its values, as `DenseTensor` has them; None without it."""

    def close(self) -> None:
        """Let go of the source."""


def working_type(dtype: str) -> str:
    """Return the type that steps are added in: float64 for float64, else float32."""
    return "float64" if dtype == "float64" else "float32"


@dataclass(frozen=True, slots=True)
class Change:
    """How the elements of one delta are made: the fifth value of its row.

    Attributes:
        form: one of `FORMS`.
        rows: of steps, whether each row along the first dimension has a step size of its own.
        product: of steps, the type that a number of steps times their size is rounded to: the
            working type, or the tensor's own half type.
        everywhere: of steps, whether 0 steps are added, too, which turns -0.0 into +0.0; otherwise
            such an element is the base's, bit for bit.
        stored: element type of the stored numbers; of steps ``int8``, or ``trits``: -1 to 1, five
            a byte (`pabzip.formats.trits`).
    """

    form: str
    rows: bool = False
    product: str = ""
    everywhere: bool = False
    stored: str = ""

    def to_detail(self) -> list[Any]:
        """Return it as a list of JSON values."""
        if self.form == "equal":
            return [self.form]
        if self.form == "difference":
            return [self.form, self.stored]
        return [self.form, int(self.rows), self.product, int(self.everywhere), self.stored]

    @classmethod
    def from_detail(cls, place: str, detail: Any) -> Change:
        """Return what a list of JSON values says."""
        if isinstance(detail, list) and detail and isinstance(detail[0], str):
            form, *rest = detail
            if form not in FORMS:
                check_name_of("change", form, FORMS, place)
            if form == "equal" and not rest:
                return cls(form)
            if form == "difference" and len(rest) == 1:
                return cls(form, stored=rest[0])
            if form == "steps" and len(rest) == 4 and {type(rest[0]), type(rest[2])} == {int}:
                rows, product, everywhere, stored = rest
                if rows in (0, 1) and everywhere in (0, 1):
                    return cls(form, bool(rows), product, bool(everywhere), stored)
        raise FormatError(place, f"expected a change from the base, found {shown(detail)}")


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
            from pabzip.formats.ternary import loops

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


def packed_size(count: int) -> int:
    """Return the bytes that numbers of steps take, five a byte."""
    return -(-count // 5)


def stepped(
    base: NDArray[Any], numbers: NDArray[np.int8], scales: NDArray[Any], dtype: str, change: Change
) -> NDArray[Any]:
    """Return elements of ``dtype``, each so many steps from the base's; may overflow to infinity.

    Product and sum are each rounded to nearest even in the working type, the product then in
    ``change.product``, the sum in ``dtype``.

    Args:
        base: flat elements; bfloat16 as bit patterns.
        numbers: how many steps each is away.
        scales: sizes of a step, in the working type: one an element, or one.
        dtype: of base and result.
        change: how a product is rounded, and what becomes of elements without a step.
    """
    work = working_type(dtype)
    with np.errstate(all="ignore"):
        products = numbers.astype(DENSE_TYPES[work].numpy) * scales
        products = from_stored(to_stored(products, work, change.product), work, change.product)
        sums = to_stored(from_stored(base, work, dtype) + products, work, dtype)
    return sums if change.everywhere else np.where(numbers == 0, base, sums)


def differing(
    base: NDArray[Any], numbers: NDArray[Any], dtype: str, name: str = ""
) -> NDArray[Any]:
    """Return the elements that differ from the base's, both flat, by the given numbers."""
    width = DENSE_TYPES[dtype].itemsize
    narrow = numbers.view(f"<u{numbers.itemsize}").astype(f"<u{width}")
    one = narrow.dtype.type(1)
    steps = (narrow >> one) ^ (~(narrow & one) + one)
    found = _from_ordered(ordered(base, dtype) + steps, dtype)
    if dtype == "bool" and (found > 1).any():
        raise FormatError(tensor_place(name), "expected booleans of 0 or 1, found other bytes")
    return found.view(DENSE_TYPES[dtype].numpy)


def differences(base: NDArray[Any], tuned: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return by what elements differ from the base's: the inverse of `differing`.

    Arrays of one shape, in the numpy type of ``dtype``; unsigned integers of the same width: 0, 1,
    2, 3, 4 ... for differences of 0, -1, +1, -2, +2 ... places in the order of all values.
    """
    steps = ordered(tuned, dtype) - ordered(base, dtype)
    one, top = steps.dtype.type(1), steps.dtype.type(8 * steps.itemsize - 1)
    return np.asarray((steps << one) ^ (~(steps >> top) + one))


def ordered(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return the bit patterns of elements, of floats in the order of their values, unsigned."""
    bits = values.view(f"<u{DENSE_TYPES[dtype].itemsize}")
    if not DENSE_TYPES[dtype].floating:
        return bits
    top = bits.dtype.type(1 << (8 * bits.itemsize - 1))
    return np.where(bits & top, ~bits, bits | top)


def _from_ordered(patterns: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return the bit patterns that `ordered` put into order."""
    if not DENSE_TYPES[dtype].floating:
        return patterns
    top = patterns.dtype.type(1 << (8 * patterns.itemsize - 1))
    return np.where(patterns & top, patterns ^ top, ~patterns)


class CheckedBase:
    """A base whose digest is compared with a file's own before any of its tensors is handed out.

    Args:
        base: its tensors; None where they are not at hand.
        entries: the tensors of the file that change one of the base's, in order.
        sha256: the digest of these in the base that the file was packed on.
    """

    def __init__(self, base: Base | None, entries: Sequence[Entry], sha256: str):
        self._base, self._entries, self._sha256 = base, entries, sha256
        self._lock, self._checked = threading.Lock(), False

    def check(self) -> None:
        """Read the base, once, and compare its digest.

        Raises:
            BaseFileError: there is none, a tensor is missing or of another shape or type, or the
                digest is another one.
        """
        with self._lock:
            if self._checked or not self._entries:
                return
            if self._base is None:
                raise BaseFileError(
                    f"base: expected the one that the file was packed on, with SHA-256 "
                    f"{self._sha256}, found none; give it with base=... (on the command line "
                    "--base FILE)"
                )
            digest = StateDigest(0)
            for entry in self._entries:
                values = self._fitting(entry)
                digest.add(DenseTensor(entry.name, values, entry.dtype, entry.dtype))
            if digest.hexdigest() != self._sha256:
                raise BaseFileError(
                    f"base: expected SHA-256 {self._sha256} of the {len(self._entries)} tensors "
                    f"that the file changes, found {digest.hexdigest()}; give the base that it was "
                    "packed on"
                )
            self._checked = True

    def read(self, entry: Entry) -> NDArray[Any]:
        """Return the base's tensor for an entry, of its shape and type; raises as `check` does."""
        self.check()
        return self._fitting(entry)

    def _fitting(self, entry: Entry) -> NDArray[Any]:
        """Return the base's tensor for an entry, which must fit, from a base not yet checked."""
        assert self._base is not None
        found = self._base.read(entry.name)
        values = None if found is None else fitting(*found, entry.dtype, entry.shape)
        if values is None:
            there = "none" if found is None else f"{found[0]} {list(found[1].shape)}"
            raise BaseFileError(
                f"base: {tensor_place(entry.name)}: expected {entry.dtype} {list(entry.shape)}, "
                f"found {there}; give the base that the file was packed on, with SHA-256 "
                f"{self._sha256}"
            )
        return values

    def close(self) -> None:
        """Let go of the base."""
        if self._base is not None:
            self._base.close()


def fitting(
    found: str, values: NDArray[Any], dtype: str, shape: tuple[int, ...]
) -> NDArray[Any] | None:
    """Return a tensor of a base as one of ``dtype`` and ``shape``, flat order kept; None otherwise.

    float32 values that bfloat16 holds exactly serve as bfloat16: numpy's files have no such type.
    """
    if values.shape != shape:
        return None
    if found == "float32" and dtype == "bfloat16":
        narrow = to_stored(values, found, dtype)
        same = from_stored(narrow, found, dtype).view("<u4") == values.view("<u4")
        return np.ascontiguousarray(narrow).reshape(shape) if same.all() else None
    if found != dtype:
        return None
    return np.asarray(values, dtype=DENSE_TYPES[dtype].numpy, order="C")


class BaseOfDeltas:
    """What deltas in memory change, and its digest: a `Base` that their file can be read on.

    It keeps the ways to read the base, and no delta.
    """

    def __init__(self) -> None:
        self._digest = StateDigest(0)
        self._reads: dict[str, tuple[str, Callable[[], NDArray[Any]]]] = {}

    def add(self, tensor: Tensor) -> None:
        """Take the next tensor of a ticket; what is no delta changes nothing.

        Raises:
            BaseFileError: the base of a delta is not at hand.
        """
        if isinstance(tensor, DeltaTensor):
            values = tensor.based_values()
            self._digest.add(DenseTensor(tensor.name, values, tensor.dtype, tensor.dtype))
            assert tensor.base is not None
            self._reads[tensor.name] = (tensor.dtype, tensor.base)

    @property
    def sha256(self) -> str:
        """The digest that a header names; empty without a delta."""
        return self._digest.hexdigest() if self._reads else ""

    def read(self, name: str) -> tuple[str, NDArray[Any]] | None:
        """Return what a delta changes."""
        if name not in self._reads:
            return None
        dtype, read = self._reads[name]
        return dtype, read()

    def close(self) -> None:
        """Do nothing: whoever opened the base closes it."""
