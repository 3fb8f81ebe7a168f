"""The table of the normal quantile: its digest, its accuracy, and the order of its values."""

from __future__ import annotations

import hashlib
from statistics import NormalDist

import numpy as np
import pytest
from mpmath import mp, mpf
from numpy.typing import NDArray

from pabzip.errors import SeedError
from pabzip.seeds import reference
from pabzip.seeds.reference import normal_magnitudes, normal_table

TOLERANCE = 2.4e-8


def _exact(value: int) -> float:
    """Return the quantile of ``value / 2**33`` by two Newton steps at 30 digits."""
    with mp.workdps(30):
        probability = mpf(value) / mpf(2) ** 33
        x = mpf(-NormalDist().inv_cdf(float(probability)))
        for _ in range(2):
            x += (mp.erfc(x / mp.sqrt(2)) / 2 - probability) / mp.npdf(x)
        return float(x)


def _segment_values() -> NDArray[np.uint32]:
    """Return the first and the last odd value of every segment that has one."""
    values = []
    for octave in range(32):
        for segment in range(64):
            first = -(-(2**31 + segment * 2**25) // 2**octave) | 1
            last = ((2**31 + (segment + 1) * 2**25 - 1) // 2**octave - 1) | 1
            values += [v for v in (first, last) if (v << octave) >> 25 == 64 + segment]
    return np.array(sorted(set(values)), dtype=np.uint32)


def test_digest_is_pinned() -> None:
    table = normal_table()
    assert table.shape == (3, 2048)
    assert table.dtype == np.uint32
    assert not table.flags.writeable
    assert hashlib.sha256(table.astype("<u4").tobytes()).hexdigest() == reference.TABLE_SHA256


def test_another_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "TABLE_SHA256", "0" * 64)
    with pytest.raises(SeedError, match=r"normal_table.npy: expected SHA-256 0000.*reinstall"):
        normal_table.__wrapped__()


def test_accuracy_at_every_segment_edge_and_at_random_places() -> None:
    generator = np.random.default_rng(20)
    inner = generator.integers(0, 2**25, 2048, dtype=np.uint64)
    starts = (np.uint64(2**31) + (np.arange(2048, dtype=np.uint64) % 64) * np.uint64(2**25)) + inner
    places = (starts >> (np.arange(2048, dtype=np.uint64) // 64)).astype(np.uint32) | np.uint32(1)
    values = np.union1d(_segment_values(), places)
    exact = np.array([_exact(int(value)) for value in values])
    error = np.abs(normal_magnitudes(values) / 2.0**28 - exact)
    assert error.max() <= TOLERANCE


def test_extremes() -> None:
    ends = normal_magnitudes(np.array([1, 3, 2**32 - 1], dtype=np.uint32))
    assert ends[0] / 2**28 == pytest.approx(_exact(1), abs=TOLERANCE)  # about 6.338
    assert ends[0] > ends[1]
    assert ends[2] / 2**28 == pytest.approx(0, abs=TOLERANCE)


def test_no_step_of_the_arithmetic_can_wrap() -> None:
    # a - mulhi(rest, b - mulhi(rest, c)) falls with rest as long as c < b, so the end decides.
    a, b, c = (row.astype(object) for row in normal_table())
    rest = 2**32 - 1
    assert np.all(2 * c <= b)
    assert np.all(a - ((rest * (b - ((rest * c) >> 32))) >> 32) >= 0)


def test_magnitudes_fall_as_the_probability_rises() -> None:
    edges = _segment_values()
    assert np.all(np.diff(normal_magnitudes(edges).astype(np.int64)) <= 0)
    # Inside a segment the two roundings may lift a value by one unit of 2**-28, never by more.
    for first in np.random.default_rng(4).integers(0, 2**31 - 2**14, 64):
        run = (2 * (first + np.arange(2**14)) + 1).astype(np.uint32)
        assert np.diff(normal_magnitudes(run).astype(np.int64)).max() <= 1


def test_magnitudes_are_at_least_one() -> None:
    nearest = np.arange(2**32 - 2**18 + 1, 2**32, 2, dtype=np.uint64).astype(np.uint32)
    assert normal_magnitudes(nearest).min() >= 1
