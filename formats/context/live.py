"""The live weights of a tensor, in the order in which they are coded.

Compiled code walks a live block through flat arrays: the places of a row that are live (one list a
group), and for each live row its number and its group. `LivePlan` holds them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pabzip.formats.context.layout import LiveBlock
from pabzip.formats.context.levels import level
from pabzip.seeds.compiled import compiled
from pabzip.seeds.gather import picked_magnitudes

PIECE = 2048
"""Live weights that are handled together, so that everything about them stays in the cache."""

_REACH = 1 << 33  # elements: two of one piece lie closer together, so their blocks fit in 32 bits


@dataclass(frozen=True, slots=True)
class LivePlan:
    """A live block as flat arrays.

    Attributes:
        width: weights in a whole row.
        rows: int64, the live rows.
        group: int64, the group of each live row.
        places: int64, the live places of a row of each group, one group after the other.
        starts: int64, (groups + 1,), where each group's places begin.
        column: int64, the live column (counted over all groups) of each of ``places``.
        position: int64, the kernel position of each of ``places``.
        ends: int64, number of live weights up to and including each live row.
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
    def of(cls, live: LiveBlock) -> LivePlan:
        """Lay a live block out."""
        layout = live.layout
        group, column = np.divmod(np.flatnonzero(live.column_alive), layout.columns)
        places = (column[:, None] * layout.positions + np.arange(layout.positions)).reshape(-1)
        counts = np.bincount(group, minlength=layout.groups) * layout.positions
        return cls(
            width=layout.width,
            rows=live.rows,
            group=layout.group_of(live.rows),
            places=places,
            starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            column=np.arange(len(places)) // layout.positions,
            position=places % layout.positions,
            ends=live.ends,
        )

    @property
    def count(self) -> int:
        """Number of live weights."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def elements_before(self, row: int) -> int:
        """Number of live weights in the live rows before the one with index ``row``."""
        return int(self.ends[row - 1]) if row else 0


@compiled
def next_piece(
    rows: NDArray[np.int64],
    group: NDArray[np.int64],
    places: NDArray[np.int64],
    starts: NDArray[np.int64],
    width: int,
    row_offsets: NDArray[np.int32],
    place_offsets: NDArray[np.int32],
    row: int,
    place: int,
    end: int,
    element: NDArray[np.int64],
    offsets: NDArray[np.int32],
) -> tuple[int, int, int]:
    """Collect the next live weights of the live rows before ``end``.

    Writes each one's element in the tensor, and the sum of the offsets of its row and its place.
    Returns how many, and the row and place (within the row's group) to go on from. The loops over
    a run of places are plain, so that they become vector instructions.
    """
    count = 0
    while row < end:
        first = starts[group[row]] + place
        base = rows[row] * width
        run = min(PIECE - count, starts[group[row] + 1] - first)
        origin = element[0] if count else base + places[first]
        while run > 0 and base + places[first + run - 1] - origin >= _REACH:
            run //= 2
        for step in range(run):
            element[count + step] = base + places[first + step]
        for step in range(run):
            offsets[count + step] = row_offsets[row] + place_offsets[first + step]
        count += run
        place += run
        if first + run < starts[group[row] + 1]:
            return count, row, place
        row += 1
        place = 0
    return count, row, place


@compiled
def gather_live(
    key: tuple[np.uint32, np.uint32],
    stream: np.uint32,
    kind: int,
    table: NDArray[np.uint32],
    rows: NDArray[np.int64],
    group: NDArray[np.int64],
    places: NDArray[np.int64],
    starts: NDArray[np.int64],
    width: int,
    codes: NDArray[np.int8],
    levels: NDArray[np.int16],
    live_codes: NDArray[np.int8],
) -> None:
    """Write the level and the code of every live weight, in coding order."""
    no_row_offsets = np.zeros(len(rows), dtype=np.int32)
    no_place_offsets = np.zeros(len(places), dtype=np.int32)
    element = np.empty(PIECE, dtype=np.int64)
    offsets = np.empty(PIECE, dtype=np.int32)
    words = np.empty(PIECE, dtype=np.uint32)
    magnitudes = np.empty(PIECE, dtype=np.uint32)
    row, place, done = 0, 0, 0
    while True:
        count, row, place = next_piece(
            rows, group, places, starts, width, no_row_offsets, no_place_offsets,
            row, place, len(rows), element, offsets,
        )  # fmt: skip
        if count == 0:
            return
        picked_magnitudes(key, stream, kind, table, element[:count], words, magnitudes)
        for i in range(count):
            levels[done + i] = level(magnitudes[i])
            live_codes[done + i] = codes[element[i]]
        done += count
