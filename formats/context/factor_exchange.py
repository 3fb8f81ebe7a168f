"""Factors in the side stream, both ways: rows first, then columns as earlier rows foretell them.

What flows into an input channel is what an earlier layer puts out, so the factor of a column
follows that of a row of the layer before it: knowing it saves a fifth of the factors' bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.formats.context import contexts
from pabzip.formats.context.factors import UNITS, Factors
from pabzip.formats.context.layout import LiveBlock
from pabzip.formats.context.side_stream import SideStream, fold, unfold

_LARGEST_OFFSET = 1 << 24  # of a threshold, or of the middle of factors

Integers = NDArray[np.int32]


def pass_threshold(stream: SideStream, known: Factors | None) -> Factors:
    """Pass the one number that a threshold adds to every level."""
    offset = _offset(stream, int(known.rows[0]) if known else 0)
    none = np.zeros(0, dtype=np.int32)
    return Factors(1, np.array([offset], dtype=np.int32), none, none)


def pass_factors(
    stream: SideStream, live: LiveBlock, earlier: Sequence[Integers], known: Factors | None
) -> tuple[Factors, Integers]:
    """Pass the factors of rows, columns and positions.

    Args:
        stream: the side stream.
        live: the tensor's live rows and columns.
        earlier: what the rows of earlier tensors foretell of the columns, the latest first:
            int32, levels, one for each column, live or not.
        known: the factors to write; None reads.

    Returns:
        The factors, and what the rows foretell of the columns of later tensors, one a row.

    Raises:
        FormatError: a factor is out of range.
    """
    unit = UNITS[stream.bit(UNITS.index(known.unit) if known else 0, contexts.UNIT)]
    none = np.zeros(len(live.rows), dtype=np.int32)
    rows, scatter = _scattered(stream, known.rows if known else None, none, contexts.ROW_FACTORS)
    foretold = np.zeros(live.layout.rows, dtype=np.int32)
    foretold[live.row_alive] = 7 * np.int32(unit) * scatter >> 3
    expected = _source(stream, live, unit, earlier, known)
    columns, _ = _scattered(
        stream, known.columns if known else None, expected, contexts.COLUMN_FACTORS
    )
    positions = np.zeros(1, dtype=np.int32)
    if live.layout.positions > 1:
        none = np.zeros(live.layout.positions, dtype=np.int32)
        positions, _ = _scattered(
            stream, known.positions if known else None, none, contexts.POSITION_FACTORS
        )
    return Factors(unit, rows, columns, positions), foretold


def _source(
    stream: SideStream,
    live: LiveBlock,
    unit: int,
    earlier: Sequence[Integers],
    known: Factors | None,
) -> Integers:
    """Pass which earlier tensor foretells the live columns' factors, if any; return them."""
    half = np.int32(unit // 2)
    choices = [np.zeros(int(live.column_alive.sum()), dtype=np.int32)]
    choices += [(levels[live.column_alive] + half) // np.int32(unit) for levels in earlier]
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
