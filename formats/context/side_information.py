"""Side information: flags, factors and tables, in the order of the side stream.

Chunks of one tensor resemble each other, so a size is told as what it exceeds its neighbors'
proportion by.

What flows into an input channel is what an earlier layer puts out, so the factor of a column
follows that of a row of the layer before it: knowing it saves a fifth of the factors' bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from pabzip.formats.context.payload import MOST_BYTES_A_WEIGHT
from pabzip.formats.context.range_coder import FLUSH_BYTES
from pabzip.formats.context.side_stream import SideStream, fold, unfold
from pabzip.formats.seeded import SeededEntry

Sizes = NDArray[np.int64]


def pass_coded_bytes(stream: SideStream, weights: list[int], known: Sizes | None) -> Sizes:
    """Pass the range-coded bytes of each chunk.

    Args:
        stream: the side stream.
        weights: active weights of each chunk; at least one chunk, at least one weight in each.
        known: what to write; None reads.

    Raises:
        FormatError: a chunk has more bytes than its weights can take.
    """
    limits = [MOST_BYTES_A_WEIGHT * count + FLUSH_BYTES for count in weights]
    start = stream.number(int(known[0]) if known is not None else 0, contexts.CODED_BYTES)

    def expected(place: int, before: int, total: int) -> int:
        """Return as many bytes a weight as in the chunk before."""
        del total
        return before * weights[place] // weights[place - 1]

    return _pass_rest(stream, contexts.BYTES_CHANGE, [start], limits, expected, known)


def pass_survivors(
    stream: SideStream, weights: list[int], survivors: int, known: Sizes | None
) -> Sizes:
    """Pass the survivors of each chunk but the last, which has the rest.

    Args:
        stream: the side stream.
        weights: active weights of each chunk; at least one chunk, at least one weight in each.
        survivors: of the whole tensor.
        known: what to write; None reads.

    Raises:
        FormatError: a chunk has more survivors than weights, or fewer than none.
    """
    ahead: list[int] = np.cumsum(weights[::-1])[::-1].tolist()  # weights from each chunk on

    def expected(place: int, before: int, total: int) -> int:
        """Return the chunk's share of the survivors that are left."""
        del before
        return (survivors - total) * weights[place] // ahead[place]

    told = None if known is None else known[:-1]
    found = _pass_rest(stream, contexts.SURVIVORS, [], weights[:-1], expected, told)
    rest = survivors - int(found.sum())
    if not 0 <= rest <= weights[-1]:
        raise FormatError(
            "side stream",
            f"expected 0 to {weights[-1]} survivors in the last chunk, found {rest}",
        )
    return np.append(found, rest)


def _pass_rest(
    stream: SideStream,
    base: int,
    sizes: list[int],
    limits: list[int],
    expected: Callable[[int, int, int], int],
    known: Sizes | None,
) -> Sizes:
    """Pass the sizes that follow ``sizes``, each as its difference from what is expected.

    ``expected`` is given the chunk's place, the size before it, and the sum of all before it.
    """
    begin = len(sizes)
    differences = np.zeros(len(limits) - begin, dtype=np.int64)
    if known is not None:
        sums = np.cumsum(known).tolist()
        for place in range(begin, len(limits)):
            before, total = (int(known[place - 1]), sums[place - 1]) if place else (0, 0)
            differences[place - begin] = fold(int(known[place]) - expected(place, before, total))
    passed = stream.numbers(differences, base, len(differences)).tolist()
    for size, limit in zip(sizes, limits, strict=False):
        _check(size, limit)
    total = sum(sizes)
    for place, difference in enumerate(passed, start=begin):
        size = expected(place, sizes[-1] if sizes else 0, total) + unfold(difference)
        sizes.append(size)
        total += size
        _check(size, limits[place])
    return np.array(sizes, dtype=np.int64)


def _check(size: int, limit: int) -> None:
    """Check the size of a chunk."""
    if not 0 <= size <= limit:
        raise FormatError(
            "side stream", f"expected a chunk's size to be 0 to {limit}, found {size}"
        )


_LARGEST_OFFSET = 1 << 24  # of a threshold, or of the middle of factors

Integers = NDArray[np.int32]


def pass_threshold(stream: SideStream, known: Factors | None) -> Factors:
    """Pass the one number that a threshold adds to every level."""
    offset = _offset(stream, int(known.rows[0]) if known else 0)
    none = np.zeros(0, dtype=np.int32)
    return Factors(1, np.array([offset], dtype=np.int32), none, none)


def pass_factors(
    stream: SideStream, active: ActiveBlock, earlier: Sequence[Integers], known: Factors | None
) -> tuple[Factors, Integers]:
    """Pass the factors of rows, columns and positions.

    Args:
        stream: the side stream.
        active: the tensor's active rows and columns.
        earlier: what the rows of earlier tensors foretell of the columns, the latest first:
            int32, levels, one for each column, active or not.
        known: the factors to write; None reads.

    Returns:
        The factors, and what the rows foretell of the columns of later tensors, one a row.

    Raises:
        FormatError: a factor is out of range.
    """
    unit = UNITS[stream.bit(UNITS.index(known.unit) if known else 0, contexts.UNIT)]
    none = np.zeros(len(active.rows), dtype=np.int32)
    rows, scatter = _scattered(stream, known.rows if known else None, none, contexts.ROW_FACTORS)
    foretold = np.zeros(active.layout.rows, dtype=np.int32)
    foretold[active.row_active] = 7 * np.int32(unit) * scatter >> 3
    expected = _source(stream, active, unit, earlier, known)
    columns, _ = _scattered(
        stream, known.columns if known else None, expected, contexts.COLUMN_FACTORS
    )
    positions = np.zeros(1, dtype=np.int32)
    if active.layout.positions > 1:
        none = np.zeros(active.layout.positions, dtype=np.int32)
        positions, _ = _scattered(
            stream, known.positions if known else None, none, contexts.POSITION_FACTORS
        )
    return Factors(unit, rows, columns, positions), foretold


def _source(
    stream: SideStream,
    active: ActiveBlock,
    unit: int,
    earlier: Sequence[Integers],
    known: Factors | None,
) -> Integers:
    """Pass which earlier tensor foretells the active columns' factors, if any; return them."""
    half = np.int32(unit // 2)
    choices = [np.zeros(int(active.column_active.sum()), dtype=np.int32)]
    choices += [(levels[active.column_active] + half) // np.int32(unit) for levels in earlier]
    wanted = 0
    if known:
        left = [known.columns - choice for choice in choices]
        wanted = int(np.argmin([np.abs(one - _middle(one)).sum() for one in left]))
    for index in range(1, len(choices)):
        if stream.bit(int(wanted == index), contexts.SOURCE + index - 1):
            return choices[index]
    return choices[0]


def _scattered(
    stream: SideStream, known: Integers | None, expected: Integers, base: int
) -> tuple[Integers, Integers]:
    """Pass numbers as what they exceed ``expected`` by: its middle, and how they scatter about it.

    Returns the numbers, and how they scatter.
    """
    middle, scatter = 0, np.zeros_like(expected)
    if known is not None:
        middle = _middle(known - expected)
        scatter = known - expected - np.int32(middle)
    middle = _offset(stream, middle)
    scatter = stream.residuals(scatter, base, len(expected))
    return expected + np.int32(middle) + scatter, scatter


def _offset(stream: SideStream, value: int) -> int:
    """Pass one signed number of 24 bits or so: the sign in its lowest bit."""
    found = unfold(stream.number(fold(value), contexts.MIDDLE))
    if abs(found) > _LARGEST_OFFSET:
        raise FormatError("side stream", f"expected a factor of at most 2**24, found {found}")
    return found


def _middle(values: Integers) -> int:
    """Return the median of numbers, as an integer."""
    return int(np.median(values))


_EARLIER = 2  # tensors whose rows may be what feeds a tensor's columns


@dataclass(frozen=True, slots=True, eq=False)
class _EarlierRows:
    """What the rows of an earlier tensor say of the columns that they may feed.

    Attributes:
        active: bool, whether each row is active.
        foretold: int32, levels by which a column's factor is likely to differ from the middle
            one; None where the tensor has no factors.
    """

    active: NDArray[np.bool_]
    foretold: NDArray[np.int32] | None


class SideInformation:
    """The side stream of a whole file: tensors in order, each through `tensor`.

    Args:
        data: the stream to read, or None to write one.
    """

    def __init__(self, data: bytes | None = None):
        self.stream = SideStream(data, contexts.COUNT)
        self._earlier: dict[int, list[_EarlierRows]] = {}

    def tensor(
        self, shape: tuple[int, ...], survivors: int, known: Description | None = None
    ) -> Description:
        """Pass one tensor's description: write ``known``, or read and return one.

        Args:
            shape: of the tensor.
            survivors: of the whole tensor, as the header has them.
            known: what to write; None reads.

        Raises:
            FormatError: the stream holds a description that cannot be.
        """
        layout = self._layout(Layout.of_shape(shape), known)
        told = Description(self._active(layout, known))
        foretold = None
        if told.active.count():
            foretold = self._mask(told, known)
            self._signs(told, known)
        self._chunks(told, survivors, known)
        kept = self._earlier.get(layout.rows, [])[: _EARLIER - 1]
        self._earlier[layout.rows] = [_EarlierRows(told.active.row_active, foretold), *kept]
        return told

    def _choice(self, value: int, base: int) -> int:
        """Pass a value of two bits, under three contexts."""
        high = self.stream.bit(value >> 1, base)
        return 2 * high + self.stream.bit(value & 1, base + 1 + high)

    def _layout(self, plain: Layout, known: Description | None) -> Layout:
        """Pass how the tensor is seen: plainly, or as groups and places within its columns."""
        wanted = known.active.layout if known else plain
        if self.stream.bit(int(wanted == plain), contexts.PLAIN_LAYOUT):
            return plain
        groups = self.stream.number(wanted.groups, contexts.LAYOUT)
        positions = self.stream.number(wanted.positions, contexts.LAYOUT)
        if groups < 1 or positions < 1 or plain.rows % groups or plain.width % positions:
            raise FormatError(
                "side stream",
                f"expected groups that divide {plain.rows} rows and positions that divide "
                f"{plain.width} places, found {groups} and {positions}",
            )
        return Layout(plain.rows, plain.width // positions, positions, groups)

    def _active(self, layout: Layout, known: Description | None) -> ActiveBlock:
        """Pass which rows and columns are active; one bit where all are."""
        rows = known.active.row_active if known else np.zeros(layout.rows, dtype=bool)
        rows = self._flags(rows, contexts.ALL_ROWS, np.full(layout.rows, contexts.ROW))
        # An empty output channel of an earlier layer is an empty input channel of a later one.
        # Nothing says which layer feeds which; the latest two with as many rows are as good a guess
        # as any.
        column_contexts = np.full(layout.all_columns, contexts.COLUMN)
        for weight, earlier in zip((3, 1), self._earlier.get(layout.all_columns, []), strict=False):
            column_contexts += weight * (1 + earlier.active)
        columns = known.active.column_active if known else np.zeros(layout.all_columns, dtype=bool)
        columns = self._flags(columns, contexts.ALL_COLUMNS, column_contexts)
        active = ActiveBlock(layout, rows, columns)
        by_row = rows.reshape(layout.groups, -1).any(axis=1)
        if np.any(by_row != columns.reshape(layout.groups, -1).any(axis=1)):
            raise FormatError(
                "side stream",
                "expected active rows and columns in the same groups, found one without the other",
            )
        return active

    def _flags(
        self, values: NDArray[np.bool_], all_context: int, each: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Pass whether all flags are set, and if not, each."""
        if self.stream.bit(int(values.all()), all_context):
            return np.ones(len(values), dtype=bool)
        return self.stream.bits(values.astype(np.uint8), each).astype(bool)

    def _mask(self, told: Description, known: Description | None) -> NDArray[np.int32] | None:
        """Pass how the mask is told, with its numbers; return what its rows say to later ones."""
        told.mask = MaskMode(self._choice(known.mask if known else 0, contexts.MODE))
        foretold = None
        factors = known.factors if known else None
        if told.mask is MaskMode.EVEN:
            told.chance = self.stream.plain(known.chance if known else 0, 16)
            if told.chance == 0:
                raise FormatError("side stream", "expected a probability above 0, found 0")
        elif told.mask is MaskMode.THRESHOLD:
            told.factors = pass_threshold(self.stream, factors)
        elif told.mask is MaskMode.FACTORS:
            before = self._earlier.get(told.active.layout.all_columns, [])
            earlier = [rows.foretold for rows in before if rows.foretold is not None]
            told.factors, foretold = pass_factors(self.stream, told.active, earlier, factors)
        if told.factors is not None:
            self._buckets(told, known)
        return foretold

    def _buckets(self, told: Description, known: Description | None) -> None:
        """Pass the uncertain buckets and the probability of each."""
        told.first = self.stream.plain(known.first if known else 0, 5)
        told.last = self.stream.plain(known.last if known else 0, 5)
        if not told.first <= told.last <= COUNT:
            raise FormatError(
                "side stream",
                f"expected uncertain buckets in 0 to {COUNT}, found {told.first} to {told.last}",
            )
        wanted = known.indices if known else np.zeros(told.last - told.first, dtype=np.int64)
        told.indices = np.array([self.stream.plain(int(index), 7) for index in wanted], np.int64)

    def _signs(self, told: Description, known: Description | None) -> None:
        """Pass how the flips are told."""
        told.signs = self._choice(known.signs if known else 0, contexts.SIGNS)
        if told.signs not in (SIGNS_KEPT, SIGNS_PLAIN, SIGNS_CODED):
            raise FormatError("side stream", f"expected a way to tell signs, found {told.signs}")
        if told.signs == SIGNS_CODED:
            told.flip_index = self.stream.plain(known.flip_index if known else 0, 7)

    def _chunks(self, told: Description, survivors: int, known: Description | None) -> None:
        """Pass the coded bytes and the survivors of each chunk."""
        weights = told.active.chunk_weights().tolist()
        if weights:
            told.coded_bytes = pass_coded_bytes(
                self.stream, weights, known.coded_bytes if known else None
            )
            told.survivors = pass_survivors(
                self.stream, weights, survivors, known.survivors if known else None
            )
        elif survivors:
            raise FormatError(
                "side stream", f"expected {survivors} survivors, found no active weight"
            )


def read_descriptions(data: bytes, entries: Sequence[SeededEntry]) -> Iterator[Description]:
    """Yield the description of each tensor of a side stream, in order, and check its end.

    Args:
        data: the side stream.
        entries: the tensors that it tells of, in order.

    Raises:
        FormatError: the stream holds what cannot be, or goes on after the last tensor.
    """
    information = SideInformation(data)
    for entry in entries:
        yield information.tensor(entry.shape, entry.survivors)
    information.stream.close()
