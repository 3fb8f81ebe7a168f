"""The weights as random numbers: moments, distribution, signs, independence.

Seeds are fixed, so nothing here is left to chance; bounds lie where a good generator fails once in
a thousand seeds or less.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import chi2

from pabzip.seeds import DISTRIBUTIONS, InitSpec, weights

DRAWS = 10**7


@cache
def _draws(distribution: str) -> NDArray[np.float32]:
    return weights(2024, InitSpec(distribution, 1.0, 3), 0, DRAWS)


@pytest.mark.parametrize(
    ("distribution", "moments"),
    [
        ("normal", (1.0, 3.0, 15.0, 105.0)),  # E x^2, x^4, x^6, x^8
        ("uniform", (1 / 3, 1 / 5, 1 / 7, 1 / 9)),
        ("signed_constant", (1.0, 1.0, 1.0, 1.0)),
    ],
)
def test_moments(distribution: str, moments: tuple[float, ...]) -> None:
    x = _draws(distribution).astype(np.float64)
    second, fourth, sixth, eighth = moments
    variances = {1: second, 2: fourth - second**2, 3: sixth, 4: eighth - fourth**2}
    raised = np.ones_like(x)
    for power, expected in ((1, 0.0), (2, second), (3, 0.0), (4, fourth)):
        raised *= x
        bound = 4 * np.sqrt(variances[power] / DRAWS)
        assert abs(raised.mean() - expected) <= bound


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_kolmogorov_smirnov(distribution: str) -> None:
    x = np.sort(_draws(distribution)).astype(np.float64)
    exact = ndtr(x) if distribution == "normal" else (x + 1) / 2
    step = np.arange(DRAWS + 1) / DRAWS
    distance = max(np.max(step[1:] - exact), np.max(exact - step[:-1]))
    assert np.sqrt(DRAWS) * distance <= 1.95  # exceeded with probability 0.001


def test_tails_of_the_normal() -> None:
    x = np.abs(_draws("normal"))
    for bound in (3.0, 4.0, 4.75):
        expected = 2 * ndtr(-bound) * DRAWS
        assert abs(np.count_nonzero(x > bound) - expected) <= 4 * np.sqrt(expected)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_signs_balance_within_and_across_blocks(distribution: str) -> None:
    negative = _draws(distribution) < 0
    # The sixteen sign patterns of a Philox block are equally likely.
    patterns = np.bincount(negative.reshape(-1, 4) @ np.array([1, 2, 4, 8]), minlength=16)
    expected = DRAWS / 4 / 16
    assert np.sum((patterns - expected) ** 2) / expected <= chi2.isf(0.001, 15)


def test_signs_do_not_depend_on_magnitudes() -> None:
    x = _draws("normal").astype(np.float64)
    assert abs(_correlation(np.sign(x), np.abs(x))) <= 4 / np.sqrt(DRAWS)


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5, 1024])
def test_no_correlation_along_a_stream(lag: int) -> None:
    x = _draws("normal").astype(np.float64)
    assert abs(_correlation(x[lag:], x[:-lag])) <= 4 / np.sqrt(DRAWS)
    assert abs(_correlation(x[lag:] ** 2, x[:-lag] ** 2)) <= 4 / np.sqrt(DRAWS)


def test_streams_and_seeds_are_independent() -> None:
    count = 10**6
    keys = [(0, 0), (0, 1), (0, 2), (0, 2**31), (1, 0), (2, 0), (2**32, 0), (2**63, 0)]
    drawn = np.stack(
        [weights(seed, InitSpec("normal", 1.0, stream), 0, count) for seed, stream in keys]
    )
    for rows in (drawn, np.abs(drawn), np.sign(drawn)):
        table = np.corrcoef(rows)
        apart = table[~np.eye(len(keys), dtype=bool)]
        assert np.max(np.abs(apart)) <= 4.5 / np.sqrt(count)


def test_streams_and_seeds_differ_everywhere() -> None:
    spec = InitSpec("uniform", 1.0, 0)
    base = weights(0, spec, 0, 10**5)
    for other in (weights(1, spec, 0, 10**5), weights(0, InitSpec("uniform", 1.0, 1), 0, 10**5)):
        assert np.count_nonzero(base == other) <= 5


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Return Pearson's correlation of two samples."""
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))
