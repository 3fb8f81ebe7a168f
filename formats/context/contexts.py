"""Where each kind of value has its adaptive contexts in the side stream (SPEC.md, section 3)."""

from __future__ import annotations

from pabzip.formats.context.side_stream import NUMBER_CONTEXTS, RESIDUAL_CONTEXTS

MODE = 0  # three: a tree of two bits
SIGNS = 3  # three
UNIT = 6
PLAIN_LAYOUT = 7
ALL_ROWS = 8
ALL_COLUMNS = 9
ROW = 10
SOURCE = 11  # two: the latest earlier tensor, the one before
COLUMN = 13  # nine: each of the two earlier rows is unknown, dead or live
LAYOUT = 22
MIDDLE = LAYOUT + NUMBER_CONTEXTS
ROW_FACTORS = MIDDLE + NUMBER_CONTEXTS
COLUMN_FACTORS = ROW_FACTORS + RESIDUAL_CONTEXTS
POSITION_FACTORS = COLUMN_FACTORS + RESIDUAL_CONTEXTS
CODED_BYTES = POSITION_FACTORS + RESIDUAL_CONTEXTS
BYTES_CHANGE = CODED_BYTES + NUMBER_CONTEXTS
SURVIVORS = BYTES_CHANGE + NUMBER_CONTEXTS
COUNT = SURVIVORS + NUMBER_CONTEXTS
