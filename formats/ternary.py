"""Ternary tensors: one code in {0, +1, -1} a weight, in the tensor's own sign, and scales.

Such a tensor needs no seed. Its codes are packed five a byte, or four where it holds -0.0, and lie
in the dense sections with the scales, where dense encodings make them small. `TernaryTensor.array`
gives the bits of the tensor as it was stored, in its own layout; `TernaryTensor.plain` gives its
weights as ordinary numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import ArchitectureError, FormatError, shown
from pabzip.formats.dense import DenseEntry, DenseTensor, from_stored, to_stored
from pabzip.formats.kind import Coding, EntryKind, StoredKind
from pabzip.formats.limits import (
    DENSE_TYPES,
    MAX_INTEGER,
    as_array,
    check_integer,
    check_name_of,
    check_shape,
    is_variance,
    tensor_place,
)
from pabzip.seeds.generation import over_ranges

if TYPE_CHECKING:
    from pabzip.formats.contents import Entry

_RANGE = 5 << 18  # elements that the digest takes at a time: whole bytes of codes

INFINITY_BITS = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}
"""Bit pattern of infinity of each floating type; those of all numbers from +0.0 are below it."""

FLOATS = tuple(INFINITY_BITS)
"""Element types of weights that are 0 and plus or minus a scale."""

BLOCK = 256
"""Weights of one block of llama.cpp's layouts."""

SCALE_SUFFIX = "_scale"
"""The scale of a tensor in transformers' layout is the tensor called as it is, with this added."""


class _Layout(NamedTuple):
    """How weights are stored.

    Attributes:
        scalings: what they may be scaled by, for each element type of the tensor.
        block_bytes: of a block of `BLOCK` weights; 0 where there are none.
    """

    scalings: Mapping[str, tuple[str, ...]]
    block_bytes: int = 0


LAYOUTS = {
    "plain": _Layout({**dict.fromkeys(FLOATS, ("runs", "columns")), "int8": ("none",)}),
    "bitnet": _Layout({"uint8": ("none", "divide", "multiply")}),
    "tq1_0": _Layout({"uint8": ("runs",)}, 54),
    "tq2_0": _Layout({"uint8": ("runs",)}, 66),
}
"""The layouts by name: one element a weight; transformers' planes of bit pairs, four a byte; and
llama.cpp's blocks, 54 or 66 bytes for 256 weights."""


def loops(backend: str) -> ModuleType:
    """Return what turns packed codes into elements: compiled loops, or plain numpy."""
    if backend == "numpy":
        from pabzip.formats import plain_trits

        return plain_trits
    from pabzip.formats import trits

    return trits


@dataclass(frozen=True, slots=True)
class TernaryEntry(EntryKind):
    """What a header says of a ternary tensor.

    Its row is ``[name, shape, dtype, "ternary", detail]``; detail is ``[layout, codes a byte,
    survivors, scaling]``, and with the scaling ``"runs"`` also the weights of a run. The attributes
    are as for `TernaryTensor`; ``survivors`` is the number of codes that are not 0.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str
    per_byte: int
    survivors: int
    scaling: str
    run: int = 0

    kind: ClassVar[str] = "ternary"
    row_lengths: ClassVar[tuple[int, ...]] = (5,)

    @property
    def version(self) -> int:
        """The format version that brought ternary tensors."""
        return 3

    @property
    def weights_shape(self) -> tuple[int, ...]:
        """The shape of the weights: the tensor's own where an element is a weight."""
        if self.layout == "bitnet":
            return (4 * self.shape[0], *self.shape[1:])
        size = LAYOUTS[self.layout].block_bytes
        return (*self.shape[:-1], self.shape[-1] // size * BLOCK) if size else self.shape

    @property
    def weights(self) -> int:
        """Number of weights."""
        return math.prod(self.weights_shape)

    @property
    def loaded_bytes(self) -> int:
        """Bytes of the plain weights; the most that they may take, where a scale tells the type."""
        sizes = {"bitnet": 4, "tq1_0": 2, "tq2_0": 2}
        return self.weights * sizes.get(self.layout, DENSE_TYPES[self.dtype].itemsize)

    @property
    def scale_dtype(self) -> str:
        """Element type of the tensor's own scales."""
        return "float16" if LAYOUTS[self.layout].block_bytes else self.dtype

    @property
    def parts(self) -> tuple[DenseEntry, ...]:
        """The packed codes; and the scales, where the tensor has scales of its own."""
        size = -(-self.weights // self.per_byte)
        codes = DenseEntry(self.name, (size,), "uint8", "uint8")
        if self.scaling not in ("runs", "columns"):
            return (codes,)
        count = self.weights // self.run if self.scaling == "runs" else self.shape[-1]
        return (codes, DenseEntry(self.name, (count,), self.scale_dtype, self.scale_dtype))

    @property
    def code_parts(self) -> int:
        """How many of `parts` hold codes: the first."""
        return 1

    def check(self, place: str, earlier: Mapping[str, Entry]) -> None:
        """Check that shape, element type, layout and scaling go together."""
        check_shape(place, self.shape, lowest_rank=1)
        check_name_of("layout", self.layout, LAYOUTS, place)
        scalings, block_bytes = LAYOUTS[self.layout]
        check_name_of(f"dtype of layout {self.layout}", self.dtype, scalings, place)
        check_name_of(f"scaling of {self.dtype}", self.scaling, scalings[self.dtype], place)
        least = 4 if self.dtype in FLOATS else 5  # others have no -0.0
        check_integer(place, "codes a byte", self.per_byte, least, 5)
        if block_bytes and self.shape[-1] % block_bytes:
            raise FormatError(
                place,
                f"expected rows of whole blocks of {block_bytes} bytes, found rows of "
                f"{self.shape[-1]}",
            )
        check_integer(place, "number of weights", self.weights, 1, MAX_INTEGER)
        check_integer(place, "number of survivors", self.survivors, 0, self.weights)
        if self.scaling == "runs":
            check_integer(place, "weights of a run", self.run, 1, self.weights)
            if self.weights % self.run or (block_bytes and self.run != BLOCK):
                raise FormatError(
                    place,
                    f"expected runs that {self.layout} tensors of {self.weights} weights divide "
                    f"into, found runs of {self.run}",
                )
        if is_variance(self.name):
            raise FormatError(place, "expected variances of at least 0, found a ternary tensor")

    def to_row(self, coding: Coding | None) -> list[Any]:
        """Return the tensor's row."""
        detail = [self.layout, self.per_byte, self.survivors, self.scaling]
        if self.scaling == "runs":
            detail.append(self.run)
        return [self.name, list(self.shape), self.dtype, self.kind, detail]

    @classmethod
    def from_row(
        cls, place: str, row: list[Any], earlier: Mapping[str, Entry]
    ) -> tuple[TernaryEntry, None] | None:
        """Return the entry of a row; None where it does not name this kind."""
        name, shape, dtype, kind, detail = row
        if kind != cls.kind or not isinstance(shape, list):
            return None
        if not isinstance(detail, list) or len(detail) != 4 + (detail[3:4] == ["runs"]):
            raise FormatError(
                place,
                "expected layout, codes a byte, survivors, scaling, and weights of a run where "
                f"there are runs, found {shown(detail)}",
            )
        return cls(name, tuple(shape), dtype, *detail), None

    def tensor(self, codes: NDArray[np.int8] | None, parts: Sequence[DenseTensor]) -> TernaryTensor:
        """Return the tensor of these packed codes and scales, checked."""
        found = TernaryTensor(
            self.name,
            self.shape,
            self.dtype,
            parts[0].values,
            parts[1].values if len(parts) > 1 else None,
            self.layout,
            self.per_byte,
            self.scaling,
            self.run,
        )
        found.check_parts(self)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class TernaryTensor(StoredKind):
    """A tensor whose weights are 0 and plus or minus a scale; its codes stay packed in memory.

    Attributes:
        name: the tensor's name in the network's state.
        shape: of the tensor as it was stored.
        dtype: torch's name of its element type as it was stored.
        packed: uint8, flat: the codes of the weights in row-major order, ``per_byte`` a byte, as
            SPEC.md states it.
        scales: flat, in ``dtype`` (bfloat16 as uint16 bit patterns), float16 for llama.cpp's
            layouts; None where the tensor has no scales of its own.
        layout: a name of `LAYOUTS`.
        per_byte: 5, or 4 where codes may be those of -0.0.
        scaling: ``"runs"``: each ``run`` successive weights share a scale; ``"columns"``: a scale
            for each place along the last dimension; ``"none"``; and in transformers' layout
            ``"divide"`` or ``"multiply"`` where the codes are to be divided or multiplied by the
            only value of the tensor called ``name + "_scale"``.
        run: weights of a run; 0 without runs.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    packed: NDArray[np.uint8]
    scales: NDArray[Any] | None
    layout: str = "plain"
    per_byte: int = 5
    scaling: str = "runs"
    run: int = 0

    @classmethod
    def of_codes(
        cls,
        name: str,
        codes: NDArray[np.int8],
        scales: NDArray[Any] | None = None,
        *,
        dtype: str = "int8",
        columns: bool = False,
    ) -> TernaryTensor:
        """Return the tensor of codes and scales.

        Args:
            name: the tensor's name in the network's state.
            codes: int8, at least one dimension: 0, +1 and -1.
            scales: of ``dtype`` (bfloat16 as uint16 bit patterns), any shape, all above 0: one a
                column, or as many as there are runs of successive weights; None for int8.
            dtype: ``"int8"``, or ``"float32"``, ``"float16"`` or ``"bfloat16"`` with scales.
            columns: whether the scales are those of the columns, along the last dimension.

        Raises:
            FormatError: other codes.
        """
        from pabzip.formats.trits import pack_codes

        flat = np.ascontiguousarray(codes, dtype=np.int8).reshape(-1)
        packed = np.empty(-(-flat.size // 5), dtype=np.uint8)
        wrong = int(pack_codes(flat, packed))
        if wrong:
            place = tensor_place(name)
            raise FormatError(place, f"expected codes 0, +1 and -1, found {wrong} others")
        scaling = "none" if scales is None else "columns" if columns else "runs"
        run = codes.size // max(scales.size, 1) if scales is not None and not columns else 0
        held = None if scales is None else np.ascontiguousarray(scales).reshape(-1)
        return cls(name, codes.shape, dtype, packed, held, scaling=scaling, run=run)

    @property
    def _parts_entry(self) -> TernaryEntry:
        """The entry but for the survivors, for what depends on shapes alone."""
        return TernaryEntry(
            self.name, self.shape, self.dtype, self.layout, self.per_byte, 0, self.scaling, self.run
        )

    @property
    def weights_shape(self) -> tuple[int, ...]:
        """The shape of the weights."""
        return self._parts_entry.weights_shape

    @property
    def scale_name(self) -> str:
        """Name of the tensor that holds the scale in transformers' layout."""
        return self.name + SCALE_SUFFIX

    @property
    def parts(self) -> tuple[DenseTensor, ...]:
        """The packed codes; and the scales, where the tensor has scales of its own."""
        arrays = (self.packed,) if self.scales is None else (self.packed, self.scales)
        return tuple(
            DenseTensor(self.name, values, part.dtype, part.dtype)
            for values, part in zip(arrays, self._parts_entry.parts, strict=True)
        )

    def tidy(self, place: str) -> TernaryTensor:
        """Return the tensor with checked arrays of the types and sizes that it must have."""
        self._parts_entry.check(place, {})
        parts = self._parts_entry.parts
        if (self.scales is None) != (len(parts) == 1):
            found = "none" if self.scales is None else "some"
            raise FormatError(
                place, f"expected {len(parts) - 1 or 'no'} arrays of scales, found {found}"
            )
        arrays = []
        for part, array in zip(parts, (self.packed, self.scales), strict=False):
            arrays.append(as_array(place, array, DENSE_TYPES[part.dtype].numpy))
            if arrays[-1].shape != part.shape:
                what = "packed codes" if len(arrays) == 1 else "scales"
                raise FormatError(
                    place, f"expected {part.shape[0]} {what}, found {list(arrays[-1].shape)}"
                )
        return replace(self, packed=arrays[0], scales=arrays[1] if len(arrays) > 1 else None)

    def entry(self, earlier: Mapping[str, Entry], seed: int = 0) -> TernaryEntry:
        """Return what a header says of the tensor."""
        return replace(self._parts_entry, survivors=self._counted()[0])

    def check_values(self) -> None:
        """Check the packed codes and the scales."""
        self.check_parts(None)

    def check_parts(self, entry: TernaryEntry | None) -> None:
        """Check codes and scales; with the entry of a file also the number of survivors.

        Raises:
            FormatError: bytes that are not five trits, codes after the last weight, scales that are
                not finite or not above 0, or another number of survivors.
        """
        from pabzip.formats.trits import tail_symbols

        place = tensor_place(self.name)
        survivors, wrong = self._counted()
        if wrong:
            raise FormatError(place, f"expected bytes of five trits, below 243, found {wrong} not")
        if tail_symbols(self.packed, self.per_byte, math.prod(self.weights_shape)).any():
            raise FormatError(place, "expected zeros after the last weight's code, found others")
        if entry is not None and survivors != entry.survivors:
            raise FormatError(
                place, f"expected {entry.survivors} codes that are not 0, found {survivors}"
            )
        if self.scales is None:
            return
        dtype = self._parts_entry.scale_dtype
        bits = self.scales.view(f"<u{self.scales.itemsize}")
        # The scale of a block may be 0. Elsewhere a weight of a code that is not 0 never is.
        least = 0 if LAYOUTS[self.layout].block_bytes else 1
        bad = (bits < least) | (bits >= INFINITY_BITS[dtype])  # which negative ones are, too
        if bad.any():
            raise FormatError(
                place,
                f"expected finite scales above 0, found {int(np.count_nonzero(bad))} of "
                f"{bad.size} that are not",
            )

    def _counted(self) -> tuple[int, int]:
        """Return the number of survivors, and of bytes that are not five trits."""
        from pabzip.formats.trits import count_packed

        survivors, wrong = count_packed(np.ascontiguousarray(self.packed), self.per_byte)
        return int(survivors), int(wrong)

    def codes(self, threads: int | None = None) -> NDArray[np.int8]:
        """Return the codes, int8 in `weights_shape`: the sign of each weight, 0 for 0.0 and -0.0.

        Args:
            threads: at most so many; None takes every CPU that the process may use.
        """
        from pabzip.formats.trits import unpack_codes

        codes = np.empty(math.prod(self.weights_shape), dtype=np.int8)

        def work(begin: int, end: int) -> None:
            unpack_codes(self.packed, self.per_byte, begin, codes[begin:end])

        over_ranges(work, codes.size, threads)
        return codes.reshape(self.weights_shape)

    def array(
        self, seed: int = 0, *, backend: str = "numba", threads: int | None = None
    ) -> NDArray[Any]:
        """Return the tensor as it was stored, bit for bit; bfloat16 as uint16 bit patterns."""
        out = np.empty(math.prod(self.shape), dtype=DENSE_TYPES[self.dtype].numpy)
        fill, size = self._filler(backend)
        step = _RANGE // size * size

        def work(begin: int, end: int) -> None:
            begin, end = -(-begin // size) * size, -(-end // size) * size  # of whole blocks
            for at in range(begin, end, step):
                fill(at, out[at : min(at + step, end)])

        over_ranges(work, out.size, threads)
        return out.reshape(self.shape)

    def elements(
        self, seed: int, *, backend: str = "numba", threads: int | None = None
    ) -> Iterator[NDArray[Any]]:
        """Yield the stored elements as the digest takes them, a range at a time."""
        fill, size = self._filler(backend)
        count = math.prod(self.shape)
        step = _RANGE // size * size
        for start in range(0, count, step):
            out = np.empty(min(step, count - start), dtype=DENSE_TYPES[self.dtype].numpy)
            fill(start, out)
            yield out

    def _filler(self, backend: str) -> tuple[Callable[[int, NDArray[Any]], None], int]:
        """Return what writes stored elements from a place onwards, and the elements of a block.

        Places, and lengths but the last, are multiples of a block's elements.
        """
        trits: Any = loops(backend)
        size = LAYOUTS[self.layout].block_bytes
        if self.layout == "bitnet":
            plane = math.prod(self.shape)
            return lambda start, out: trits.unpack_planes(self.packed, plane, start, out), 1
        if size:
            assert self.scales is not None
            scales, ternary = self.scales.view("<u2"), self.layout == "tq1_0"

            def blocks(start: int, out: NDArray[Any]) -> None:
                into = out.reshape(-1, size)
                trits.unpack_blocks(self.packed, ternary, scales, start // size, into)

            return blocks, size
        if self.scales is None:
            return lambda start, out: trits.unpack_codes(self.packed, 5, start, out), 1
        kind = f"<u{self.scales.itemsize}"
        patterns = self.scales.view(kind)
        sign = 1 << (8 * patterns.itemsize - 1)

        def floats(start: int, out: NDArray[Any]) -> None:
            into = out.view(kind)
            trits.unpack_floats(self.packed, self.per_byte, patterns, self.run, sign, start, into)

        return floats, 1

    def plain(
        self,
        scale: DenseTensor | None = None,
        *,
        scaling: str | None = None,
        backend: str = "numba",
        threads: int | None = None,
    ) -> DenseTensor:
        """Return the weights as ordinary numbers, in `weights_shape`.

        Args:
            scale: of transformers' layout: the tensor called ``name + "_scale"``, one value.
            scaling: of that layout: ``"divide"`` or ``"multiply"``, where the tensor does not say.
            backend: ``"numba"``, or ``"numpy"``, which gives the same bits.
            threads: at most so many; None takes every CPU that the process may use.

        Returns:
            Of plain tensors the tensor itself; of llama.cpp's layouts float16; of transformers'
            layout in the type of the scale, each weight rounded once to nearest even. 0 is +0.0
            wherever a layout has no -0.0.

        Raises:
            ArchitectureError: it is not known how codes are scaled, ``scaling`` contradicts the
                tensor, or there is no such scale.
        """
        if self.layout == "plain":
            return DenseTensor(
                self.name, self.array(backend=backend, threads=threads), self.dtype, self.dtype
            )
        dtype, run, patterns = "float16", self.run, self.scales
        if self.layout == "bitnet":
            dtype, size = self._applied(scale, scaling)
            run, patterns = math.prod(self.weights_shape), np.full(1, size)
        assert patterns is not None
        held = replace(
            self,
            shape=self.weights_shape,
            dtype=dtype,
            scales=patterns,
            layout="plain",
            scaling="runs",
            run=run,
        )
        values = held.array(backend=backend, threads=threads)
        if self.layout != "bitnet" and not patterns.all():
            values[values == 0] = 0  # a block of scale 0 has no negative zeros either
        return DenseTensor(self.name, values, dtype, dtype)

    def _applied(self, scale: DenseTensor | None, scaling: str | None) -> tuple[str, Any]:
        """Return element type and size of the weights in transformers' layout, which have one."""
        how = self.scaling if self.scaling != "none" else scaling
        if scaling not in (None, how):
            raise ArchitectureError(
                f"{self.name}: expected bitnet_scale to be {how}, as the file says, found "
                f"{scaling}; leave out bitnet_scale (--bitnet-scale)"
            )
        if how not in ("divide", "multiply"):
            raise ArchitectureError(
                f"{self.name}: expected to know whether its codes are divided or multiplied by "
                f"{self.scale_name}, found neither in the file; say it with bitnet_scale "
                "(--bitnet-scale: BitLinear divides, AutoBitLinear multiplies), or take it as "
                "stored (--as-stored)"
            )
        if scale is None or scale.values.size != 1 or scale.dtype not in FLOATS:
            found = "none" if scale is None else f"{scale.values.size} values of {scale.dtype}"
            raise ArchitectureError(
                f"{self.name}: expected one floating value in {self.scale_name}, found "
                f"{found}; take the tensor as stored (--as-stored)"
            )
        exact = from_stored(scale.values.reshape(-1), "float64", scale.dtype)
        with np.errstate(divide="ignore", over="ignore"):
            # A quotient of 53 bits can be rounded to 24 as if it were exact.
            wide = 1 / exact if how == "divide" else exact
            single = scale.dtype == "float32"
            size = wide.astype("<f4") if single else to_stored(wide, "float64", scale.dtype)
        positive = from_stored(size, "float64", scale.dtype)[0]
        if not (np.isfinite(positive) and positive > 0):
            raise ArchitectureError(
                f"{self.name}: expected a weight that {scale.dtype} holds, found "
                f"{self.scale_name} of {float(exact[0])!r}; take the tensor as stored "
                "(--as-stored)"
            )
        return scale.dtype, size[0]
