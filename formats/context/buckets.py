"""Thirty buckets for how far a weight's predicted score lies from the threshold.

The coder predicts a score z in levels; 0 is the threshold. Near it the buckets are narrow, since
there a level more or less changes the odds; far from it a weight is as good as decided.
"""

from __future__ import annotations

import numpy as np

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
