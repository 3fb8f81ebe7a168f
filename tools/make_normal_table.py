"""Make, or check, the table behind pabzip's normal distribution.

    python tools/make_normal_table.py            # write pabzip/seeds/normal_table.npy
    python tools/make_normal_table.py --check    # compare the committed table with a fresh one

The table is part of the file format: it must never change once a version that uses it is
released. Everything is computed with mpmath at 40 digits, so every machine makes the same table.
Needs mpmath; takes a few minutes.

What the coefficients mean, and how they are used, stands in ``pabzip/seeds/reference.py``.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from statistics import NormalDist

import numpy as np
from mpmath import mp, mpf
from numpy.typing import NDArray

OCTAVES = 32
SEGMENTS = 64
FRACTION_BITS = 28
PROBES = 25  # points of a segment at which the error of the integer form is centered
TABLE = Path(__file__).resolve().parents[1] / "pabzip" / "seeds" / "normal_table.npy"

mp.dps = 40


def exact_quantile(probability: mpf) -> mpf:
    """Return x with P(standard normal > x) = ``probability``, to about 38 digits."""
    x = mpf(-NormalDist().inv_cdf(float(probability)))
    for _ in range(2):  # Newton doubles the 15 digits of the start twice
        tail = mp.erfc(x / mp.sqrt(2)) / 2
        x += (tail - probability) / mp.npdf(x)
    return x


def integer_form(a: int, b: int, c: int, rest: int) -> int:
    """Return the fixed-point quantile before the final ``max(1, .)``, as every backend does."""
    return a - ((rest * (b - ((rest * c) >> 32))) >> 32)


def fit_segment(octave: int, segment: int) -> tuple[int, int, int]:
    """Fit one segment: interpolate at Chebyshev nodes, round, then center the real error."""
    lowest = mpf(2**31 + segment * 2**25) / mpf(2) ** (33 + octave)
    width = mpf(2**25) / mpf(2) ** (33 + octave)

    def target(x: mpf) -> mpf:
        return exact_quantile(lowest + x * width) * 2**FRACTION_BITS

    nodes = [(1 - mp.cos(mp.pi * (2 * k + 1) / 6)) / 2 for k in range(3)]
    values = [target(x) for x in nodes]
    first = (values[1] - values[0]) / (nodes[1] - nodes[0])
    last = (values[2] - values[1]) / (nodes[2] - nodes[1])
    second = (last - first) / (nodes[2] - nodes[0])
    c = int(mp.nint(second))
    # The inner product is rounded down, by half a unit on average: b gives that half back.
    b = int(mp.nint(-(first - second * (nodes[0] + nodes[1])) - mpf(1) / 2))

    rests = [(k * (2**25 - 1) // (PROBES - 1)) << 7 for k in range(PROBES)]
    gaps = [target(mpf(rest) / 2**32) - integer_form(0, b, c, rest) for rest in rests]
    a = int(mp.nint((max(gaps) + min(gaps)) / 2))
    # Unsigned 32-bit arithmetic must never pass below zero (only next to the median could it).
    a = max(a, -integer_form(0, b, c, rests[-1]))
    return a, b, c


def make_table() -> NDArray[np.uint32]:
    """Return the coefficients a, b, c as uint32, shape (3, OCTAVES * SEGMENTS)."""
    rows = []
    for octave in range(OCTAVES):
        rows += [fit_segment(octave, segment) for segment in range(SEGMENTS)]
        sys.stderr.write(f"octave {octave + 1} of {OCTAVES}\n")
    return np.array(rows, dtype=np.uint32).T.copy()


def main() -> int:
    """Run the command line described at the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 on a difference")
    arguments = parser.parse_args()
    table = make_table()
    digest = hashlib.sha256(table.astype("<u4").tobytes()).hexdigest()
    if arguments.check:
        committed = np.load(TABLE, allow_pickle=False)
        same = committed.dtype == table.dtype and np.array_equal(committed, table)
        sys.stdout.write(
            f"{TABLE.name}: {'equal' if same else 'DIFFERENT'}, SHA-256 of a fresh one {digest}\n"
        )
        return 0 if same else 1
    np.save(TABLE, table, allow_pickle=False)
    sys.stdout.write(f"wrote {TABLE}, SHA-256 of its content {digest}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
