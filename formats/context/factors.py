"""Factors: what is added to a weight's level to give its score, in integers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pabzip.formats.context.live import LivePlan

UNITS = (4, 8)
"""Levels a unit of row and column factors: 1/64 and 1/32 octave."""


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """What is added to a level to give a score, in integers.

    Attributes:
        unit: levels a unit of ``rows`` and ``columns``.
        rows: int32, one a live row.
        columns: int32, one a live column.
        positions: int32, one a kernel position, in levels.
    """

    unit: int
    rows: NDArray[np.int32]
    columns: NDArray[np.int32]
    positions: NDArray[np.int32]

    def row_offsets(self) -> NDArray[np.int32]:
        """Return what each live row adds, in levels."""
        return self.rows * np.int32(self.unit)

    def place_offsets(self, plan: LivePlan) -> NDArray[np.int32]:
        """Return what each live place adds, in levels."""
        columns = self.columns * np.int32(self.unit)
        return columns[plan.column] + self.positions[plan.position]
