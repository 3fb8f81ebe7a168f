"""How the coder sees a tensor: rows, columns and kernel positions; live ones; chunks.

A weight of shape (outputs, inputs, kernel...) is seen as ``rows`` of ``columns`` times
``positions``. In a grouped convolution the rows fall into equal groups that each see columns of
their own; a Linear after a flatten is a convolution whose positions are the flattened places.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

CHUNK_WEIGHTS = 1 << 16
"""A chunk takes whole live rows, as many as keep it within this many live weights, at least one."""


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
class LiveBlock:
    """The rows and columns that hold survivors; everything else is neither coded nor drawn.

    What follows from them is worked out once, when it is first asked for.

    Attributes:
        layout: of the whole tensor.
        row_alive: bool, (rows,).
        column_alive: bool, (groups * columns,).
    """

    layout: Layout
    row_alive: NDArray[np.bool_]
    column_alive: NDArray[np.bool_]

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """The live rows, ascending."""
        return np.flatnonzero(self.row_alive)

    @cached_property
    def row_counts(self) -> NDArray[np.int64]:
        """The number of live places of each live row."""
        layout = self.layout
        columns = self.column_alive.reshape(layout.groups, layout.columns).sum(axis=1)
        counts: NDArray[np.int64] = columns[layout.group_of(self.rows)] * layout.positions
        return counts

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """The number of live weights up to and including each live row."""
        return np.cumsum(self.row_counts)

    def count(self) -> int:
        """Return the number of weights in live rows and columns."""
        return int(self.ends[-1]) if len(self.ends) else 0

    @cached_property
    def chunks(self) -> list[tuple[int, int]]:
        """Each chunk as a range of live rows, by index into `rows`."""
        ends = self.ends
        found, begin, done = [], 0, 0
        while done < (ends[-1] if len(ends) else 0):
            fitting = int(np.searchsorted(ends, done + CHUNK_WEIGHTS, side="right"))
            end = max(begin + 1, fitting)
            found.append((begin, end))
            begin, done = end, int(ends[end - 1])
        return found

    def chunk_weights(self) -> NDArray[np.int64]:
        """Return the number of live weights of each chunk."""
        last_rows = np.array([end - 1 for _, end in self.chunks], dtype=np.int64)
        return np.diff(self.ends[last_rows], prepend=0)


def find_live(codes: NDArray[np.int8], layout: Layout) -> LiveBlock:
    """Return the live block of ``codes``, which has ``layout``'s number of elements."""
    grouped = (codes != 0).reshape(
        layout.groups, layout.rows // layout.groups, layout.columns, layout.positions
    )
    by_column = grouped.any(axis=3)
    return LiveBlock(
        layout,
        row_alive=by_column.any(axis=2).reshape(-1),
        column_alive=by_column.any(axis=1).reshape(-1),
    )
