"""What a decoder must know of a tensor before its payload."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.formats.context.buckets import COUNT
from pabzip.formats.context.factors import Factors
from pabzip.formats.context.layout import LiveBlock
from pabzip.formats.context.live import LivePlan
from pabzip.formats.context.predictor import SIGNS_KEPT, Predictor, sign_bytes
from pabzip.formats.context.probabilities import SCALE


class MaskMode(enum.IntEnum):
    """How the mask of the live weights is told."""

    ALL = 0
    """Every live weight survives."""
    EVEN = 1
    """Every live weight survives with the same probability."""
    THRESHOLD = 2
    """By the level alone."""
    FACTORS = 3
    """By the level and factors of row, column and position."""


class ChunkSpan(NamedTuple):
    """One chunk: its live rows, and where its bytes lie in the payload.

    Attributes:
        begin: first live row.
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
        live: the rows and columns that hold survivors.
        mask: how the mask of the live weights is told.
        signs: how the flips of the survivors are told.
        flip_index: of the probability of a flip, in `SCALE`.
        chance: probability of survival times 65536, where ``mask`` is EVEN.
        factors: where ``mask`` is THRESHOLD (one row factor, the threshold) or FACTORS.
        first: first uncertain bucket.
        last: one past the last uncertain bucket.
        indices: of the probability of each uncertain bucket, in `SCALE`.
        coded_bytes: range-coded bytes of each chunk.
        survivors: of each chunk.
    """

    live: LiveBlock
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

    def spans(self, payload_length: int) -> list[ChunkSpan]:
        """Return where each chunk lies in a payload.

        Args:
            payload_length: bytes of the tensor's section.

        Raises:
            FormatError: the section has another length than the chunks take.
        """
        if payload_length != self.payload_bytes:
            raise FormatError(
                "codes", f"expected {self.payload_bytes} bytes of chunks, found {payload_length}"
            )
        found, at = [], 0
        sizes = zip(self.coded_bytes.tolist(), self.survivors.tolist(), strict=True)
        for (begin, end), (coded, survivors) in zip(self.live.chunks, sizes, strict=True):
            stop = at + coded + sign_bytes(self.signs, survivors)
            found.append(ChunkSpan(begin, end, at, at + coded, stop, survivors))
            at = stop
        return found

    def predictor(self, plan: LivePlan) -> Predictor:
        """Return what tells the mask, as the compiled code takes it."""
        rows, places = len(plan.rows), len(plan.places)
        row_offsets, place_offsets = np.zeros(rows, np.int32), np.zeros(places, np.int32)
        chances = np.zeros(COUNT, dtype=np.uint32)
        first, last = self.first, self.last
        if self.mask is MaskMode.FACTORS:
            assert self.factors is not None
            row_offsets = self.factors.row_offsets()
            place_offsets = self.factors.place_offsets(plan)
        elif self.mask is MaskMode.THRESHOLD:
            assert self.factors is not None
            row_offsets = np.full(rows, self.factors.rows[0], dtype=np.int32)
        if self.mask is MaskMode.EVEN:
            first, last = 0, 1
            chances[0] = self.chance
        else:
            chances[first:last] = SCALE[self.indices]
        return Predictor(
            scored=self.mask in (MaskMode.THRESHOLD, MaskMode.FACTORS),
            row_offsets=row_offsets,
            place_offsets=place_offsets,
            first=first,
            last=last,
            chances=chances,
            signs=self.signs,
            flip_chance=int(SCALE[self.flip_index]),
        )
