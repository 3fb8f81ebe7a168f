"""Side information: what the side stream says of each tensor, in the order of its bytes.

Writing and reading are one description of the layout. Every value passes through the stream as
``value = stream.number(value, ...)``, which ignores a reader's value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.formats.context import side_stream as contexts
from pabzip.formats.context.geometry import ActiveBlock, Layout
from pabzip.formats.context.model import (
    COUNT,
    SIGNS_CODED,
    SIGNS_KEPT,
    SIGNS_PLAIN,
    UNITS,
    Description,
    Factors,
    MaskMode,
)
from pabzip.formats.context.range_coder import FLUSH_BYTES
from pabzip.formats.context.side_stream import SideStream, fold, unfold
from pabzip.formats.seeded import SeededEntry

Integers = NDArray[np.int32]

_LARGEST_OFFSET = 1 << 24  # of a threshold, or of the middle of factors
_MOST_BYTES_A_WEIGHT = 4  # two range-coded bits at most, each of probability 2**-16 or more
_EARLIER = 2  # tensors whose rows may be what feeds a tensor's columns


@dataclass(frozen=True, slots=True, eq=False)
class _EarlierRows:
    """What the rows of an earlier tensor say of the columns that they may feed.

    Attributes:
        active: bool, whether each row is active.
        predicted: int32, levels by which a column's factor is likely to differ from the middle
            one; None where the tensor has no factors.
    """

    active: NDArray[np.bool_]
    predicted: Integers | None


class SideInformation:
    """The side stream of a whole file: tensors in order, each through `tensor`.

    Args:
        data: the stream to read, or None to write one.

    What flows into an input channel is what an earlier layer puts out. Nothing says which layer
    feeds which, so the latest two tensors with as many rows as this one has columns are taken for
    it: their empty rows predict empty columns, and their factors, which saves a fifth of the bits
    of factors.
    """

    def __init__(self, data: bytes | None = None):
        self.stream = SideStream(data)
        self._earlier: dict[int, list[_EarlierRows]] = {}

    def tensor(
        self, shape: tuple[int, ...], survivors: int, known: Description | None = None
    ) -> Description:
        """Write ``known``, or read and return the description of a tensor.

        ``survivors`` are those of the whole tensor that the seed does not freeze, as the header
        has them.
        """
        plain = Layout.of_shape(shape)
        layout = self._layout(plain, known.active.layout if known else plain)
        active = self._active(layout, known.active if known else ActiveBlock.none(layout))
        found = known if known else Description(active)
        predicted = None
        if active.count():
            predicted = self._mask(found)
            self._signs(found)
            self._chunks(found, survivors)
        elif survivors:
            raise FormatError(
                "side stream", f"expected {survivors} survivors, found no active weight"
            )
        kept = self._earlier.get(layout.rows, [])[: _EARLIER - 1]
        self._earlier[layout.rows] = [_EarlierRows(active.row_active, predicted), *kept]
        return found

    def _choice(self, value: int, base: int) -> int:
        """Pass a value of two bits, under three contexts."""
        high = self.stream.bit(value >> 1, base)
        return 2 * high + self.stream.bit(value & 1, base + 1 + high)

    def _layout(self, plain: Layout, layout: Layout) -> Layout:
        """Pass how the tensor is seen: plainly, or as groups and places within its columns."""
        if self.stream.bit(int(layout == plain), contexts.PLAIN_LAYOUT):
            return plain
        groups = self.stream.number(layout.groups, contexts.LAYOUT)
        positions = self.stream.number(layout.positions, contexts.LAYOUT)
        if groups < 1 or positions < 1 or plain.rows % groups or plain.width % positions:
            raise FormatError(
                "side stream",
                f"expected groups that divide {plain.rows} rows and positions that divide "
                f"{plain.width} places, found {groups} and {positions}",
            )
        return Layout(plain.rows, plain.width // positions, positions, groups)

    def _active(self, layout: Layout, known: ActiveBlock) -> ActiveBlock:
        """Pass which rows and columns are active; one bit where all are."""
        rows = self._flags(known.row_active, contexts.ALL_ROWS, np.full(layout.rows, contexts.ROW))
        column_contexts = np.full(layout.all_columns, contexts.COLUMN)
        for weight, earlier in zip((3, 1), self._earlier.get(layout.all_columns, []), strict=False):
            column_contexts += weight * (1 + earlier.active)
        columns = self._flags(known.column_active, contexts.ALL_COLUMNS, column_contexts)
        by_row = rows.reshape(layout.groups, -1).any(axis=1)
        if np.any(by_row != columns.reshape(layout.groups, -1).any(axis=1)):
            raise FormatError(
                "side stream",
                "expected active rows and columns in the same groups, found one without the other",
            )
        return ActiveBlock(layout, rows, columns)

    def _flags(
        self, values: NDArray[np.bool_], all_context: int, each: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Pass whether all flags are set, and if not, each."""
        if self.stream.bit(int(values.all()), all_context):
            return np.ones(len(values), dtype=bool)
        return self.stream.bits(values.astype(np.uint8), each).astype(bool)

    def _mask(self, found: Description) -> Integers | None:
        """Pass how the mask is coded; return what its rows predict of the columns of later tensors.

        That is int32, levels, one per row; None where the tensor has no factors.
        """
        found.mask = MaskMode(self._choice(found.mask, contexts.MODE))
        predicted = None
        if found.mask is MaskMode.EVEN:
            found.chance = self.stream.plain(found.chance, 16)
            if found.chance == 0:
                raise FormatError("side stream", "expected a probability above 0, found 0")
        elif found.mask is MaskMode.THRESHOLD:
            threshold = self._offset(int(found.factors.rows[0]) if found.factors else 0)
            found.factors = Factors.even(found.active, 1, threshold)
        elif found.mask is MaskMode.FACTORS:
            predicted = self._factors(found)
        if found.mask in (MaskMode.THRESHOLD, MaskMode.FACTORS):
            self._buckets(found)
        return predicted

    def _factors(self, found: Description) -> Integers:
        """Pass the factors of rows, columns and positions; return what the rows predict."""
        active, known = found.active, found.factors or Factors.even(found.active)
        unit = UNITS[self.stream.bit(UNITS.index(known.unit), contexts.UNIT)]
        rows, residuals = self._scattered(known.rows, np.int32(0), contexts.ROW_FACTORS)
        predicted = np.zeros(active.layout.rows, dtype=np.int32)
        predicted[active.row_active] = 7 * np.int32(unit) * residuals >> 3
        expected = self._source(active, unit, known.columns)
        columns, _ = self._scattered(known.columns, expected, contexts.COLUMN_FACTORS)
        positions = known.positions
        if active.layout.positions > 1:
            positions, _ = self._scattered(positions, np.int32(0), contexts.POSITION_FACTORS)
        found.factors = Factors(unit, rows, columns, positions)
        return predicted

    def _source(self, active: ActiveBlock, unit: int, columns: Integers) -> Integers:
        """Pass which earlier tensor predicts the active columns' factors, if any; return them."""
        half = np.int32(unit // 2)
        choices = [np.zeros(len(columns), dtype=np.int32)]
        for rows in self._earlier.get(active.layout.all_columns, []):
            if rows.predicted is not None:
                choices.append((rows.predicted[active.column_active] + half) // np.int32(unit))
        wanted = 0
        if self.stream.writing:
            left = [columns - choice for choice in choices]
            wanted = int(np.argmin([np.abs(one - _middle(one)).sum() for one in left]))
        for index in range(1, len(choices)):
            if self.stream.bit(int(wanted == index), contexts.SOURCE + index - 1):
                return choices[index]
        return choices[0]

    def _scattered(
        self, values: Integers, expected: Integers | np.int32, base: int
    ) -> tuple[Integers, Integers]:
        """Pass numbers as the middle of what they exceed ``expected`` by, and residuals about it.

        Returns the numbers and the residuals.
        """
        middle = self._offset(_middle(values - expected))
        residuals = values - expected - np.int32(middle)
        residuals = self.stream.residuals(residuals, base)
        return expected + np.int32(middle) + residuals, residuals

    def _offset(self, value: int) -> int:
        """Pass one signed number of 24 bits or so: the sign in its lowest bit."""
        found = unfold(self.stream.number(fold(value), contexts.MIDDLE))
        if abs(found) > _LARGEST_OFFSET:
            raise FormatError("side stream", f"expected a factor of at most 2**24, found {found}")
        return found

    def _buckets(self, found: Description) -> None:
        """Pass the uncertain buckets and the probability of each."""
        found.first = self.stream.plain(found.first, 5)
        found.last = self.stream.plain(found.last, 5)
        if not found.first <= found.last <= COUNT:
            raise FormatError(
                "side stream",
                f"expected uncertain buckets in 0 to {COUNT}, found {found.first} to {found.last}",
            )
        if not self.stream.writing:
            found.indices = np.zeros(found.last - found.first, dtype=np.int64)
        for at, index in enumerate(found.indices.tolist()):
            found.indices[at] = self.stream.plain(index, 7)

    def _signs(self, found: Description) -> None:
        """Pass how the flips are coded."""
        found.signs = self._choice(found.signs, contexts.SIGNS)
        if found.signs not in (SIGNS_KEPT, SIGNS_PLAIN, SIGNS_CODED):
            raise FormatError("side stream", f"expected a sign mode of 0 to 2, found {found.signs}")
        if found.signs == SIGNS_CODED:
            found.flip_index = self.stream.plain(found.flip_index, 7)

    def _chunks(self, found: Description, survivors: int) -> None:
        """Pass the coded bytes and the survivors of each chunk.

        Chunks of one tensor resemble each other, so a size is stored as its difference from the
        share that its neighbors suggest. The last chunk has the rest of the survivors.
        """
        weights: list[int] = found.active.chunk_weights().tolist()
        ahead: list[int] = np.cumsum(weights[::-1])[::-1].tolist()  # weights from each chunk on
        none = [0] * len(weights)
        known = found.coded_bytes.tolist() if self.stream.writing else none
        coded: list[int] = []
        for place, weight in enumerate(weights):
            limit = _MOST_BYTES_A_WEIGHT * weight + FLUSH_BYTES
            if not coded:
                size = self.stream.number(known[place], contexts.CODED_BYTES)
                coded.append(_checked_size(size, limit))
            else:
                likely = coded[-1] * weight // weights[place - 1]
                coded.append(self._size(known[place], likely, limit, contexts.BYTES_CHANGE))
        known = found.survivors.tolist() if self.stream.writing else none
        kept: list[int] = []
        rest = survivors
        for place, weight in enumerate(weights[:-1]):
            likely = rest * weight // ahead[place]
            kept.append(self._size(known[place], likely, weight, contexts.SURVIVORS))
            rest -= kept[-1]
        if not 0 <= rest <= weights[-1]:
            raise FormatError(
                "side stream",
                f"expected 0 to {weights[-1]} survivors in the last chunk, found {rest}",
            )
        found.coded_bytes = np.array(coded, dtype=np.int64)
        found.survivors = np.array([*kept, rest], dtype=np.int64)

    def _size(self, known: int, likely: int, limit: int, base: int) -> int:
        """Pass a chunk's size as its difference from what is likely."""
        return _checked_size(likely + unfold(self.stream.number(fold(known - likely), base)), limit)


def _checked_size(size: int, limit: int) -> int:
    """Return the size of a chunk if it is one."""
    if not 0 <= size <= limit:
        raise FormatError(
            "side stream", f"expected a chunk's size to be 0 to {limit}, found {size}"
        )
    return size


def _middle(values: Integers) -> int:
    """Return the median of numbers, as an integer."""
    return int(np.median(values))


def read_descriptions(data: bytes, entries: Sequence[SeededEntry]) -> Iterator[Description]:
    """Yield the description of each tensor of a side stream, in order, and check its end."""
    information = SideInformation(data)
    for entry in entries:
        yield information.tensor(entry.shape, entry.learned_survivors)
    information.stream.close("side stream")
