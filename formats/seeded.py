"""Seeded tensors: weights that a seed, an init spec, and one code per weight determine."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError, SeedError, shown
from pabzip.formats.dense import DenseEntry, DenseTensor
from pabzip.formats.kind import Coding, EntryKind, StoredKind
from pabzip.formats.limits import as_array, check_integer, check_shape, tensor_place
from pabzip.seeds import Frozen, InitSpec, regenerate
from pabzip.seeds.frozen import KEPT, PRUNED
from pabzip.seeds.spec import MAX_SCALE, MIN_SCALE

if TYPE_CHECKING:
    from pabzip.formats.contents import Entry

SCALED_DISTRIBUTION = "signed_constant"
"""The only distribution of a tensor whose rows have scales; its own scale is 1."""

_RANGE = 1 << 22  # weights regenerated at a time, so that a large tensor needs no copy of itself


@dataclass(frozen=True, slots=True)
class SeededEntry(EntryKind):
    """What a header says of a seeded tensor.

    Its row is ``[name, shape, distribution, scale, stream, coder, survivors, bytes]``, with a 1
    after these where its rows have scales, or a list of four where the seed freezes a part of its
    mask: ``[pruned, kept, places pruned, places kept]``.

    Attributes:
        name: the parameter's name in the network's state.
        shape: its dimensions, at least one.
        spec: how the base weights are drawn.
        survivors: number of codes that are not 0.
        scaled: whether each row along the first dimension has a scale. Dense sections hold these,
            float32 (rows,), under the tensor's name.
        frozen: how much of the mask the seed fixes; None for none of it.
        frozen_places: how many places that prunes and keeps.
    """

    name: str
    shape: tuple[int, ...]
    spec: InitSpec
    survivors: int
    scaled: bool = False
    frozen: Frozen | None = None
    frozen_places: tuple[int, int] = (0, 0)

    kind: ClassVar[str] = "seeded"
    row_lengths: ClassVar[tuple[int, ...]] = (8, 9)
    dtype: ClassVar[str] = "float32"

    @property
    def version(self) -> int:
        """The format version that brought what the entry needs: 2 where the seed freezes a mask."""
        return 1 if self.frozen is None else 2

    @property
    def parts(self) -> tuple[DenseEntry, ...]:
        """The scales of the rows, if there are any."""
        if not self.scaled:
            return ()
        return (DenseEntry(self.name, self.shape[:1], "float32", "float32"),)

    @property
    def learned(self) -> int:
        """Number of places that have a code in the file: all that the seed does not freeze."""
        return self.count - sum(self.frozen_places)

    @property
    def learned_survivors(self) -> int:
        """Number of codes in the file that are not 0."""
        return self.survivors - self.frozen_places[1]

    def check(self, place: str, earlier: Mapping[str, Entry]) -> None:
        """Check the shape, the survivors, and that the init spec suits scales of rows."""
        count = check_shape(place, self.shape, lowest_rank=1)
        if not isinstance(self.spec, InitSpec):
            raise FormatError(place, f"expected an InitSpec, found {type(self.spec).__name__}")
        check_integer(place, "number of survivors", self.survivors, 0, count)
        if self.scaled and (self.spec.distribution, self.spec.scale) != (SCALED_DISTRIBUTION, 1.0):
            raise FormatError(
                place,
                f"expected {SCALED_DISTRIBUTION} of scale 1 where rows have scales, found "
                f"{self.spec.distribution} of scale {self.spec.scale!r}",
            )
        if self.frozen is not None:
            self._check_frozen(place, count)

    def _check_frozen(self, place: str, count: int) -> None:
        """Check that a frozen part is one, and that shape and survivors leave room for it."""
        if self.scaled:
            raise FormatError(place, "expected scales of rows or frozen places, found both")
        if self.frozen == Frozen(0, 0):
            raise FormatError(place, "expected a fraction of frozen places above 0, found 0 and 0")
        pruned, kept = self.frozen_places
        check_integer(place, "number of frozen pruned places", pruned, 0, count - self.survivors)
        check_integer(place, "number of frozen kept places", kept, 0, self.survivors)

    def marks(self, seed: int, threads: int | None = None) -> NDArray[np.int8]:
        """Return the marks of a frozen mask, flat (`pabzip.seeds.Frozen.marks`), counted.

        A tensor without one has 0 everywhere.
        """
        if self.frozen is None:
            return np.zeros(self.count, dtype=np.int8)
        marks = self.frozen.marks(seed, self.spec.stream, 0, self.count, threads=threads)
        found = int(np.count_nonzero(marks == PRUNED)), int(np.count_nonzero(marks == KEPT))
        if found != self.frozen_places:
            raise FormatError(
                tensor_place(self.name),
                f"expected the seed to prune {self.frozen_places[0]} and keep "
                f"{self.frozen_places[1]} places for good, found {found[0]} and {found[1]}",
            )
        return marks

    def to_row(self, coding: Coding | None) -> list[Any]:
        """Return the tensor's row; the scale is the bit pattern of a float32."""
        assert coding is not None
        return [
            self.name,
            list(self.shape),
            self.spec.distribution,
            struct.unpack("<I", struct.pack("<f", self.spec.scale))[0],
            self.spec.stream,
            coding.coder,
            self.survivors,
            coding.length,
            *([1] if self.scaled else []),
            *([[self.frozen.pruned, self.frozen.kept, *self.frozen_places]] if self.frozen else []),
        ]

    @classmethod
    def from_row(
        cls, place: str, row: list[Any], earlier: Mapping[str, Entry]
    ) -> tuple[SeededEntry, Coding] | None:
        """Return the entry and the coding of a row; None without a list for its shape."""
        if not isinstance(row[1], list):
            return None
        spec = _spec(place, *row[2:5])
        frozen = row[8] if len(row) == 9 and isinstance(row[8], list) else None
        scaled = len(row) == 9 and frozen is None
        if scaled and (type(row[8]) is not int or row[8] != 1):
            raise FormatError(
                place,
                "expected a 1 for scales of its rows or a list for frozen places, found "
                f"{shown(row[8])}",
            )
        entry = cls(row[0], tuple(row[1]), spec, survivors=row[6], scaled=scaled)
        if frozen is not None:
            entry = replace(entry, frozen=_frozen(place, frozen), frozen_places=tuple(frozen[2:]))
        return entry, Coding(coder=row[5], length=row[7])

    def tensor(self, codes: NDArray[np.int8] | None, parts: Sequence[DenseTensor]) -> SeededTensor:
        """Return the tensor of these codes, and scales where its rows have them."""
        assert codes is not None
        scales = check_scales(self.name, parts[0].values) if parts else None
        return SeededTensor(self.name, self.spec, codes, scales, self.frozen)


def _spec(place: str, distribution: Any, scale: Any, stream: Any) -> InitSpec:
    """Return a row's init spec."""
    if type(scale) is not int or not 0 <= scale < 2**32:
        raise FormatError(place, f"expected the scale's 32 bits, found {shown(scale)}")
    if type(stream) is not int or not isinstance(distribution, str):
        raise FormatError(
            place, f"expected distribution and stream, found {shown([distribution, stream])}"
        )
    try:
        return InitSpec(distribution, struct.unpack("<f", struct.pack("<I", scale))[0], stream)
    except SeedError as error:
        raise FormatError(place, f"{error}; if it comes from a newer pabzip, upgrade") from None


def _frozen(place: str, values: list[Any]) -> Frozen:
    """Return the fractions of a row's list; `SeededEntry.check` sees to the places."""
    if len(values) != 4:
        raise FormatError(
            place, f"expected two fractions and two counts of frozen places, found {shown(values)}"
        )
    try:
        return Frozen(*values[:2])
    except SeedError as error:
        raise FormatError(place, str(error)) from None


@dataclass(frozen=True, slots=True, eq=False)
class SeededTensor(StoredKind):
    """A weight that its seed, its init spec and one code per weight determine.

    Attributes:
        name: the parameter's name in the network's state.
        spec: how the base weights are drawn.
        codes: int8, C-contiguous, the shape of the weight: 0 pruned, +1 the seed's sign kept,
            -1 flipped.
        scales: None, or float32 (rows,), one for each row along the first dimension, which its
            weights are multiplied by. Only with ``signed_constant`` of scale 1: the weights of
            row r are then 0 and plus or minus ``scales[r]``.
        frozen: how much of the mask the seed fixes, so that no code of it is stored; None for
            none. The codes of those places are 0 and +1 as the seed says. Not with ``scales``.

    Source: Peek-a-Boo, Appendix D (one code merges the mask and the sign flip).
    """

    name: str
    spec: InitSpec
    codes: NDArray[np.int8]
    scales: NDArray[np.float32] | None = None
    frozen: Frozen | None = None

    dtype: ClassVar[str] = "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return self.codes.shape

    @property
    def parts(self) -> tuple[DenseTensor, ...]:
        """The scales of the rows, if there are any."""
        if self.scales is None:
            return ()
        return (DenseTensor(self.name, self.scales, "float32", "float32"),)

    def tidy(self, place: str) -> SeededTensor:
        """Return the tensor with checked arrays: codes 0, +1 and -1, and a scale for each row."""
        codes = as_array(place, self.codes, np.dtype(np.int8))
        wrong = int(np.count_nonzero((codes < -1) | (codes > 1)))
        if wrong:
            raise FormatError(place, f"expected codes 0, +1 and -1, found {wrong} others")
        if self.scales is None:
            return replace(self, codes=codes)
        scales = as_array(place, self.scales, np.dtype(np.float32))
        if scales.shape != codes.shape[:1] or not scales.shape:
            raise FormatError(
                place,
                f"expected one scale per row, shape {list(codes.shape[:1])}, found "
                f"{list(scales.shape)}",
            )
        return replace(self, codes=codes, scales=check_scales(self.name, scales))

    def entry(self, earlier: Mapping[str, Entry], seed: int = 0) -> SeededEntry:
        """Return what a header says of the tensor; what the seed freezes must be as it says."""
        survivors = int(np.count_nonzero(self.codes))
        scaled = self.scales is not None
        if self.frozen is None:
            return SeededEntry(self.name, self.shape, self.spec, survivors, scaled)
        marks, codes = self._marks(seed), self.codes.reshape(-1)
        places = int(np.count_nonzero(marks == PRUNED)), int(np.count_nonzero(marks == KEPT))
        wrong = int(
            np.count_nonzero(((marks == PRUNED) & (codes != 0)) | (marks == KEPT) & (codes != 1))
        )
        if wrong:
            raise FormatError(
                tensor_place(self.name),
                f"expected code 0 where seed {seed} prunes and +1 where it keeps for good, found "
                f"{wrong} of {sum(places)} frozen places otherwise",
            )
        return SeededEntry(self.name, self.shape, self.spec, survivors, scaled, self.frozen, places)

    def _marks(self, seed: int) -> NDArray[np.int8]:
        """Return the marks of the frozen places, flat."""
        assert self.frozen is not None
        return self.frozen.marks(seed, self.spec.stream, 0, self.codes.size)

    def marked(self, seed: int) -> NDArray[np.int8]:
        """Return the codes as coders take them: marks of `pabzip.seeds.frozen` at frozen places."""
        if self.frozen is None:
            return self.codes
        marks = self._marks(seed).reshape(self.shape)
        return np.where(marks == 0, self.codes, marks)

    def array(
        self, seed: int, *, backend: str = "numba", threads: int | None = None
    ) -> NDArray[np.float32]:
        """Return the regenerated weights, float32, in the tensor's shape."""
        flat = regenerated(seed, self, backend=backend, threads=threads)
        return flat.reshape(self.shape)

    def elements(
        self, seed: int, *, backend: str = "numba", threads: int | None = None
    ) -> Iterator[NDArray[Any]]:
        """Yield the regenerated weights as the digest takes them: flat and little-endian."""
        for start in range(0, self.codes.size, _RANGE):
            stop = start + _RANGE
            part = regenerated(seed, self, start, stop, backend=backend, threads=threads)
            yield part.astype("<f4", copy=False)


def settle(marked: NDArray[np.int8]) -> None:
    """Put the codes in the place of the marks that are left: 0 pruned, +1 kept; in place."""
    marked[marked == PRUNED] = 0
    marked[marked == KEPT] = 1


def check_scales(name: str, scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return scales, float32 (rows,), each within the range of an init spec's scale."""
    bad = int(np.count_nonzero(~((scales >= MIN_SCALE) & (scales <= MAX_SCALE))))  # NaN, too
    if bad:
        raise FormatError(
            tensor_place(name), f"expected scales with 2**-64 <= scale <= 2**64, found {bad} others"
        )
    return scales


def scale_rows(weights: NDArray[np.float32], scales: NDArray[np.float32] | None) -> None:
    """Multiply each row by its scale, in place: float32 (rows, ...) by float32 (rows,).

    Exact for weights of 0, +1 and -1; 0 stays +0.0.
    """
    if scales is not None:
        weights *= scales.reshape(-1, *[1] * (weights.ndim - 1))


def scale_range(
    weights: NDArray[np.float32], scales: NDArray[np.float32], size: int, start: int
) -> None:
    """Multiply successive weights of a tensor by the scales of their rows, in place.

    ``weights`` is flat and begins with weight ``start`` of the tensor in row-major order, whose
    rows have ``size`` weights each; ``scales`` are those of all rows.
    """
    row, within = divmod(start, size)
    rows = scales[row : -(-(start + len(weights)) // size)]
    weights *= np.repeat(rows, size)[within : within + len(weights)]


def regenerated(
    seed: int,
    tensor: SeededTensor,
    start: int = 0,
    stop: int | None = None,
    *,
    backend: str = "numba",
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Return the weights ``start`` to ``stop`` of a seeded tensor in row-major order.

    Args:
        seed: the ticket's seed.
        tensor: with or without scales.
        start: the first weight.
        stop: the one after the last; None for the last weight's.
        backend: of `pabzip.seeds.regenerate`; every backend gives the same bits.
        threads: likewise.

    Returns:
        float32, flat.
    """
    codes = tensor.codes.reshape(-1)[start:stop]
    weights = regenerate(seed, tensor.spec, codes, start=start, backend=backend, threads=threads)
    if tensor.scales is not None:
        scale_range(weights, tensor.scales, tensor.codes.size // tensor.scales.size, start)
    return weights
