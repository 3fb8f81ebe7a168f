"""Rows, columns and kernel positions of a tensor, which of them are active, and their levels.

A weight of shape (outputs, inputs, kernel...) is seen as ``rows`` of ``columns`` times
``positions``. In a grouped convolution the rows fall into equal groups that each see columns of
their own; a Linear after a flatten is a convolution whose positions are the flattened places.

Compiled code walks an active block through the flat arrays of `ActivePlan`: the places of a row
that are active (one list per group), and for each active row its number and its group.

The level of a fixed-point magnitude n is about 256 * log2(n): its octave from the leading zeros,
the rest from a table over the eight bits that follow the leading one. No floating point is
involved, so every decoder agrees (SPEC.md, "Levels").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pabzip.seeds.compiled import compiled
from pabzip.seeds.kernels import Generator, leading_zeros, picked_magnitudes

STEPS = 256
"""Levels per octave."""


# floor(256 log2(x)) = floor(log2(x ** 256)), and an integer's bit length is floor(log2) + 1.
FRACTIONS = np.array(
    [((STEPS + j) ** STEPS).bit_length() - 1 - 8 * STEPS for j in range(STEPS)], dtype=np.int16
)
"""floor(256 * log2(1 + j / 256)) for j = 0..255, by exact integer arithmetic."""


@compiled
def level(magnitude: np.uint32) -> np.int32:
    """Return the level of one magnitude, a uint32 of at least 1."""
    zeros = leading_zeros(magnitude)
    aligned = np.uint32(magnitude << zeros)
    return np.int32(
        (31 - np.int32(zeros)) * 256 + FRACTIONS[(aligned >> np.uint32(23)) & np.uint32(255)]
    )


CHUNK_WEIGHTS = 1 << 16
"""Most active weights of a chunk, which takes whole active rows, and at least one."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A tensor as ``rows`` x (``columns`` x ``positions``), in row-major order.

    Attributes:
        rows: output channels.
        columns: input channels that one row sees.
        positions: kernel positions, or flattened places.
        groups: equal runs of rows that see different columns; 1 but in grouped convolutions.
    """

    rows: int
    columns: int
    positions: int
    groups: int = 1

    @classmethod
    def of_shape(cls, shape: tuple[int, ...]) -> Layout:
        """Return the plain layout of a shape: outputs, inputs, then all kernel axes together."""
        if len(shape) < 2:
            return cls(math.prod(shape), 1, 1)
        return cls(shape[0], shape[1], math.prod(shape[2:]))

    @property
    def width(self) -> int:
        """Weights in a row."""
        return self.columns * self.positions

    @property
    def all_columns(self) -> int:
        """Columns over all groups."""
        return self.columns * self.groups

    def group_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the group of each row."""
        return rows // (self.rows // self.groups)


@dataclass(frozen=True, eq=False)
class ActiveBlock:
    """The rows and columns that hold survivors; everything else is neither coded nor drawn.

    What follows from them is worked out once, when it is first asked for.

    Attributes:
        layout: of the whole tensor.
        row_active: bool, (rows,).
        column_active: bool, (groups * columns,).
    """

    layout: Layout
    row_active: NDArray[np.bool_]
    column_active: NDArray[np.bool_]

    @classmethod
    def none(cls, layout: Layout) -> ActiveBlock:
        """Return the block of a tensor without survivors."""
        return cls(layout, np.zeros(layout.rows, bool), np.zeros(layout.all_columns, bool))

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """The active rows, ascending."""
        return np.flatnonzero(self.row_active)

    @cached_property
    def row_counts(self) -> NDArray[np.int64]:
        """The number of active places of each active row."""
        layout = self.layout
        columns = self.column_active.reshape(layout.groups, layout.columns).sum(axis=1)
        counts: NDArray[np.int64] = columns[layout.group_of(self.rows)] * layout.positions
        return counts

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """The number of active weights up to and including each active row."""
        return np.cumsum(self.row_counts)

    def count(self) -> int:
        """Return the number of weights in active rows and columns."""
        return int(self.ends[-1]) if len(self.ends) else 0

    @cached_property
    def chunks(self) -> list[tuple[int, int]]:
        """Each chunk as a range of active rows, by index into `rows`."""
        ends = self.ends
        found, begin, done = [], 0, 0
        while done < (ends[-1] if len(ends) else 0):
            fitting = int(np.searchsorted(ends, done + CHUNK_WEIGHTS, side="right"))
            end = max(begin + 1, fitting)
            found.append((begin, end))
            begin, done = end, int(ends[end - 1])
        return found

    def chunk_weights(self) -> NDArray[np.int64]:
        """Return the number of active weights of each chunk."""
        last_rows = np.array([end - 1 for _, end in self.chunks], dtype=np.int64)
        return np.diff(self.ends[last_rows], prepend=0)


def find_active(codes: NDArray[np.int8], layout: Layout) -> ActiveBlock:
    """Return the active block of ``codes``, which has ``layout``'s number of elements.

    Places that the seed freezes, whose codes are marks above 1, make no row or column active.
    """
    grouped = ((codes != 0) & (codes <= 1)).reshape(
        layout.groups, layout.rows // layout.groups, layout.columns, layout.positions
    )
    by_column = grouped.any(axis=3)
    return ActiveBlock(
        layout,
        row_active=by_column.any(axis=2).reshape(-1),
        column_active=by_column.any(axis=1).reshape(-1),
    )


PIECE = 2048
"""Active weights that are handled together, so that everything about them stays in the cache."""

_REACH = 1 << 33  # elements: two of one piece lie closer together, so their blocks fit in 32 bits


class ActivePlan(NamedTuple):
    """An active block as flat arrays, as compiled code takes it.

    Attributes:
        width: weights in a whole row.
        rows: int64, the active rows.
        group: int64, the group of each active row.
        places: int64, the active places of a row of each group, one group after the other.
        starts: int64, (groups + 1,), where each group's places begin.
        column: int64, the active column (counted over all groups) of each of ``places``.
        position: int64, the kernel position of each of ``places``.
        ends: int64, number of active weights up to and including each active row.
    """

    width: int
    rows: NDArray[np.int64]
    group: NDArray[np.int64]
    places: NDArray[np.int64]
    starts: NDArray[np.int64]
    column: NDArray[np.int64]
    position: NDArray[np.int64]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, active: ActiveBlock) -> ActivePlan:
        """Lay an active block out."""
        layout = active.layout
        group, column = np.divmod(np.flatnonzero(active.column_active), layout.columns)
        places = (column[:, None] * layout.positions + np.arange(layout.positions)).reshape(-1)
        counts = np.bincount(group, minlength=layout.groups) * layout.positions
        return cls(
            width=layout.width,
            rows=active.rows,
            group=layout.group_of(active.rows),
            places=places,
            starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            column=np.arange(len(places)) // layout.positions,
            position=places % layout.positions,
            ends=active.ends,
        )


class ActiveWeights(NamedTuple):
    """The active weights of a tensor in coding order, as an encoder takes them.

    Attributes:
        plan: where they are.
        levels: int16, of each.
        codes: int8, of each; a mark above 1 where the seed freezes it, and it is not coded.
    """

    plan: ActivePlan
    levels: NDArray[np.int16]
    codes: NDArray[np.int8]

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Whether each is learned and survives."""
        return np.asarray((self.codes != 0) & (self.codes <= 1))


@compiled
def next_piece(
    plan: ActivePlan,
    row_offsets: NDArray[np.int32],
    place_offsets: NDArray[np.int32],
    row: int,
    place: int,
    end: int,
    element: NDArray[np.int64],
    offsets: NDArray[np.int32],
) -> tuple[int, int, int]:
    """Collect the next active weights of the active rows before ``end``.

    Writes each one's element in the tensor, and the sum of the offsets of its row and its place.
    Returns how many, and the row and place (within the row's group) to go on from. The loops over
    a run of places are plain, so that they become vector instructions.
    """
    places, count = plan.places, 0
    while row < end:
        group = plan.group[row]
        first = plan.starts[group] + place
        base = plan.rows[row] * plan.width
        run = min(PIECE - count, plan.starts[group + 1] - first)
        origin = element[0] if count else base + places[first]
        while run > 0 and base + places[first + run - 1] - origin >= _REACH:
            run //= 2
        for step in range(run):
            element[count + step] = base + places[first + step]
        for step in range(run):
            offsets[count + step] = row_offsets[row] + place_offsets[first + step]
        count += run
        place += run
        if first + run < plan.starts[group + 1]:
            return count, row, place
        row += 1
        place = 0
    return count, row, place


@compiled
def gather_active(generator: Generator, codes: NDArray[np.int8], weights: ActiveWeights) -> None:
    """Fill in the level and the code of every active weight, given the codes of all."""
    plan = weights.plan
    no_row_offsets = np.zeros(len(plan.rows), dtype=np.int32)
    no_place_offsets = np.zeros(len(plan.places), dtype=np.int32)
    element = np.empty(PIECE, dtype=np.int64)
    offsets = np.empty(PIECE, dtype=np.int32)
    words = np.empty(PIECE, dtype=np.uint32)
    magnitudes = np.empty(PIECE, dtype=np.uint32)
    row, place, done = 0, 0, 0
    while True:
        count, row, place = next_piece(
            plan, no_row_offsets, no_place_offsets, row, place, len(plan.rows), element, offsets
        )
        if count == 0:
            return
        picked_magnitudes(generator, element[:count], words, magnitudes)
        for i in range(count):
            weights.levels[done + i] = level(magnitudes[i])
            weights.codes[done + i] = codes[element[i]]
        done += count
