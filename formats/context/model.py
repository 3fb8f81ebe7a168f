"""The model of a mask: levels, factors, buckets and their probabilities.

The coder predicts a score z in levels; 0 is the threshold. Near it the buckets are narrow, since
there a level more or less changes the odds; far from it a weight is as good as decided.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.formats.context.geometry import ActiveBlock, ActivePlan
from pabzip.formats.context.range_coder import HALF, ONE

_POSITIVE_EDGES = (1, 3, 6, 10, 16, 24, 34, 48, 66, 90, 122, 166, 230, 320)
EDGES = np.array(
    [*(-edge for edge in reversed(_POSITIVE_EDGES)), 0, *_POSITIVE_EDGES], dtype=np.int32
)
"""Bucket b holds the scores z with EDGES[b - 1] <= z < EDGES[b]; the outermost are unbounded."""

COUNT = len(EDGES) + 1
"""Number of buckets: 30."""

REACH = int(EDGES[-1])
"""Scores are clamped to [-REACH - 1, REACH] before `BUCKET_OF` is read."""

BUCKET_OF = np.searchsorted(EDGES, np.arange(-REACH - 1, REACH + 1), side="right").astype(np.uint8)
"""Bucket of a clamped score z, at index z + REACH + 1."""


SCALE_SIZE = 128
"""Entries of the static scale: an index takes seven bits."""


def _scale() -> np.ndarray:
    """Return the static scale: from one half, each step takes 3/32 off the smaller side."""
    below = [HALF]
    while len(below) < SCALE_SIZE // 2:
        below.append(below[-1] * 29 >> 5)
    return np.array([*reversed(below), *(ONE - small for small in below)], dtype=np.uint32)


SCALE = _scale()


def scale_index(ones: int, count: int) -> int:
    """Return the index in `SCALE` that codes ``ones`` of ``count`` bits in the fewest bits."""
    if not count:
        return SCALE_SIZE // 2
    probability = SCALE / ONE
    cost = -(ones * np.log2(probability) + (count - ones) * np.log2(1 - probability))
    return int(np.argmin(cost))


UNITS = (4, 8)
"""Levels per unit of row and column factors: 1/64 and 1/32 octave."""


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """What is added to a level to give a score, in integers.

    Attributes:
        unit: levels per unit of ``rows`` and ``columns``.
        rows: int32, one per active row.
        columns: int32, one per active column.
        positions: int32, one per kernel position, in levels.
    """

    unit: int
    rows: NDArray[np.int32]
    columns: NDArray[np.int32]
    positions: NDArray[np.int32]

    @classmethod
    def even(cls, active: ActiveBlock, unit: int = UNITS[0], row: int = 0) -> Factors:
        """Return factors that add ``row`` units to every level."""
        columns = np.zeros(int(active.column_active.sum()), dtype=np.int32)
        positions = np.zeros(active.layout.positions, dtype=np.int32)
        return cls(unit, np.full(len(active.rows), row, dtype=np.int32), columns, positions)

    def row_offsets(self) -> NDArray[np.int32]:
        """Return what each active row adds, in levels."""
        return self.rows * np.int32(self.unit)

    def place_offsets(self, plan: ActivePlan) -> NDArray[np.int32]:
        """Return what each active place adds, in levels."""
        columns = self.columns * np.int32(self.unit)
        return columns[plan.column] + self.positions[plan.position]


SIGNS_KEPT, SIGNS_PLAIN, SIGNS_CODED = range(3)
"""How flips are stored: there are none; one plain bit per survivor; range-coded with the mask."""


class Predictor(NamedTuple):
    """What predicts the mask of a tensor's active weights, as compiled code takes it.

    Attributes:
        scored: whether buckets follow from scores; otherwise every weight is in bucket 0.
        row_offsets: int32, levels that each active row adds.
        place_offsets: int32, levels that each active place adds.
        first: first uncertain bucket; weights of lower ones are pruned.
        last: one past the last uncertain bucket; weights from there on survive.
        chances: uint32, (30,), probability of survival of each uncertain bucket, times 65536.
        signs: `SIGNS_KEPT`, `SIGNS_PLAIN` or `SIGNS_CODED`.
        flip_chance: probability of a flip, times 65536, where signs are coded.
    """

    scored: bool
    row_offsets: NDArray[np.int32]
    place_offsets: NDArray[np.int32]
    first: int
    last: int
    chances: NDArray[np.uint32]
    signs: int
    flip_chance: int


def sign_bytes(signs: int, survivors: int) -> int:
    """Return the bytes of a chunk's plain signs."""
    return (survivors + 7) // 8 if signs == SIGNS_PLAIN else 0


class MaskMode(enum.IntEnum):
    """How the mask of the active weights is coded."""

    ALL = 0
    """Every active weight survives."""
    EVEN = 1
    """Every active weight survives with the same probability."""
    THRESHOLD = 2
    """By the level alone."""
    FACTORS = 3
    """By the level and factors of row, column and position."""


class ChunkSpan(NamedTuple):
    """One chunk: its active rows, and where its bytes lie in the payload.

    Attributes:
        begin: first active row.
        end: one past the last.
        coded_begin: first range-coded byte.
        coded_end: one past the last; the plain signs begin here.
        sign_end: one past the chunk's last byte.
        survivors: in the chunk.
    """

    begin: int
    end: int
    coded_begin: int
    coded_end: int
    sign_end: int
    survivors: int


@dataclass(slots=True)
class Description:
    """One tensor, but for its payload.

    Attributes:
        active: the rows and columns that hold survivors.
        mask: how the mask of the active weights is coded.
        signs: how the flips of the survivors are stored.
        flip_index: of the probability of a flip, in `SCALE`.
        chance: probability of survival times 65536, where ``mask`` is EVEN.
        factors: where ``mask`` is THRESHOLD (all rows add the same) or FACTORS.
        first: first uncertain bucket.
        last: one past the last uncertain bucket.
        indices: of the probability of each uncertain bucket, in `SCALE`.
        coded_bytes: range-coded bytes of each chunk.
        survivors: of each chunk.
    """

    active: ActiveBlock
    mask: MaskMode = MaskMode.ALL
    signs: int = SIGNS_KEPT
    flip_index: int = 0
    chance: int = 0
    factors: Factors | None = None
    first: int = 0
    last: int = 0
    indices: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    coded_bytes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    survivors: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def payload_bytes(self) -> int:
        """Bytes of the payload."""
        signs = sum(sign_bytes(self.signs, count) for count in self.survivors.tolist())
        return int(self.coded_bytes.sum()) + signs

    @property
    def sign_bits(self) -> float:
        """Bits that the payload spends on signs; coded ones count their entropy."""
        if self.signs != SIGNS_CODED:
            return 8.0 * sum(sign_bytes(self.signs, count) for count in self.survivors.tolist())
        if self.mask is not MaskMode.EVEN and self.first == self.last:
            return 8.0 * self.payload_bytes  # nothing but signs is coded
        share = float(SCALE[self.flip_index]) / ONE
        each = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
        return each * float(self.survivors.sum())

    def spans(self, payload_length: int) -> list[ChunkSpan]:
        """Return where each chunk lies in a payload of so many bytes."""
        if payload_length != self.payload_bytes:
            raise FormatError(
                "codes", f"expected {self.payload_bytes} bytes of chunks, found {payload_length}"
            )
        found, at = [], 0
        sizes = zip(self.coded_bytes.tolist(), self.survivors.tolist(), strict=True)
        for (begin, end), (coded, survivors) in zip(self.active.chunks, sizes, strict=True):
            stop = at + coded + sign_bytes(self.signs, survivors)
            found.append(ChunkSpan(begin, end, at, at + coded, stop, survivors))
            at = stop
        return found

    def predictor(self, plan: ActivePlan) -> Predictor:
        """Return what predicts the mask, as compiled code takes it."""
        factors = self.factors or Factors.even(self.active)
        chances = np.zeros(COUNT, dtype=np.uint32)
        first, last = self.first, self.last
        if self.mask is MaskMode.EVEN:
            first, last = 0, 1
            chances[0] = self.chance
        else:
            chances[first:last] = SCALE[self.indices]
        return Predictor(
            scored=self.mask in (MaskMode.THRESHOLD, MaskMode.FACTORS),
            row_offsets=factors.row_offsets(),
            place_offsets=factors.place_offsets(plan),
            first=first,
            last=last,
            chances=chances,
            signs=self.signs,
            flip_chance=int(SCALE[self.flip_index]),
        )
