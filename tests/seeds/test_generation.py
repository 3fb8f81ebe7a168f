"""Weights against a second, scalar definition; backends, ranges and threads against each other."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pabzip.errors import SeedError
from pabzip.seeds import (
    BACKENDS,
    DISTRIBUTIONS,
    InitSpec,
    magnitudes,
    philox,
    reference,
    regenerate,
    weights,
)

SCALES = [2.0**-64, float(np.float32(0.0371)), 1.0, 2.0**64]
specs = st.builds(
    InitSpec,
    st.sampled_from(DISTRIBUTIONS),
    st.sampled_from(SCALES),
    st.integers(0, 2**32 - 1),
)
seeds = st.integers(0, 2**64 - 1)
# Around the start, around the 32-bit carry of the block counter, and far beyond it.
starts = st.one_of(
    st.integers(0, 5000), st.integers(2**34 - 3000, 2**34 + 10), st.integers(0, 2**62)
)


def scalar_magnitude(seed: int, spec: InitSpec, place: int) -> tuple[int, bool]:
    """Return magnitude and sign of one weight in Python's unbounded integers."""
    word = int(philox.words(seed, spec.stream, place, place + 1)[0])
    value = (2 * word + 1) % 2**32
    negative = word >= 2**31
    if spec.distribution == "uniform":
        return value, negative
    if spec.distribution == "signed_constant":
        return 1, negative
    octave = 32 - value.bit_length()
    aligned = value << octave
    rest = (aligned << 7) % 2**32
    a, b, c = (int(x) for x in reference.normal_table()[:, octave * 64 + (aligned >> 25) % 64])
    return max(1, a - (rest * (b - (rest * c >> 32)) >> 32)), negative


def scalar_weight(seed: int, spec: InitSpec, place: int) -> float:
    """Return one weight; Python's float and struct do the two roundings."""
    magnitude, negative = scalar_magnitude(seed, spec, place)
    bits = {"normal": 28, "uniform": 32, "signed_constant": 0}[spec.distribution]

    def rounded(x: float) -> float:
        return float(struct.unpack("<f", struct.pack("<f", x))[0])

    # float64 holds both the 32-bit magnitude and the product of two float32 exactly.
    product = rounded(rounded(float(magnitude)) * math.ldexp(spec.scale, -bits))
    return -product if negative else product


@settings(max_examples=40, deadline=None)
@given(seeds, specs, starts, st.sampled_from(BACKENDS))
def test_scalar_definition(seed: int, spec: InitSpec, start: int, backend: str) -> None:
    stop = start + 7
    places = range(start, stop)
    assert magnitudes(seed, spec, start, stop, backend=backend).tolist() == [
        scalar_magnitude(seed, spec, place)[0] for place in places
    ]
    assert weights(seed, spec, start, stop, backend=backend).tolist() == [
        scalar_weight(seed, spec, place) for place in places
    ]


@settings(max_examples=40, deadline=None)
@given(seeds, specs, starts, st.integers(0, 9000), st.floats(0, 1))
def test_backends_give_the_same_bits(
    seed: int, spec: InitSpec, start: int, count: int, keep: float
) -> None:
    stop = start + count
    codes = random_codes(count, keep)
    numpy_made, numba_made = (
        [
            magnitudes(seed, spec, start, stop, backend=backend),
            weights(seed, spec, start, stop, backend=backend),
            regenerate(seed, spec, codes, start=start, backend=backend),
        ]
        for backend in ("numpy", "numba")
    )
    for one, other in zip(numpy_made, numba_made, strict=True):
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes()


@settings(max_examples=30, deadline=None)
@given(seeds, specs, starts, st.integers(0, 5000), st.sampled_from(BACKENDS))
def test_codes_keep_flip_or_prune(
    seed: int, spec: InitSpec, start: int, count: int, backend: str
) -> None:
    codes = random_codes(count, 0.4)
    drawn = weights(seed, spec, start, start + count, backend=backend)
    found = regenerate(seed, spec, codes, start=start, backend=backend)
    expected = np.where(codes == 0, np.float32(0), np.where(codes > 0, drawn, -drawn))
    assert found.tobytes() == expected.astype(np.float32).tobytes()  # also tells +0.0 from -0.0
    assert np.all(drawn != 0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_any_range_is_a_piece_of_the_whole(backend: str, distribution: str) -> None:
    spec = InitSpec(distribution, 1.0, 5)
    whole = weights(9, spec, 0, 6000, backend=backend)
    for start, stop in [(0, 0), (1, 2), (3, 2051), (2047, 2049), (2049, 6000), (5, 4103)]:
        assert np.array_equal(weights(9, spec, start, stop, backend=backend), whole[start:stop])


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_do_not_change_a_bit(backend: str) -> None:
    spec, count = InitSpec("normal", 1.0, 0), 3 * 2**18 + 5
    codes = random_codes(count, 0.1)
    one = [
        magnitudes(1, spec, 3, count + 3, backend=backend, threads=1),
        weights(1, spec, 3, count + 3, backend=backend, threads=1),
        regenerate(1, spec, codes, start=3, backend=backend, threads=1),
    ]
    for threads in (2, 3, None):
        many = [
            magnitudes(1, spec, 3, count + 3, backend=backend, threads=threads),
            weights(1, spec, 3, count + 3, backend=backend, threads=threads),
            regenerate(1, spec, codes, start=3, backend=backend, threads=threads),
        ]
        assert [x.tobytes() for x in many] == [x.tobytes() for x in one]


@pytest.mark.parametrize("backend", BACKENDS)
def test_shapes_and_out(backend: str) -> None:
    spec = InitSpec("uniform", 1.0, 0)
    codes = random_codes(60, 0.5).reshape(3, 4, 5)
    fresh = regenerate(2, spec, codes, backend=backend)
    assert fresh.shape == (3, 4, 5)
    out = np.full((3, 4, 5), np.nan, dtype=np.float32)
    assert regenerate(2, spec, codes, out=out, backend=backend) is out
    assert np.array_equal(out, fresh)
    turned = regenerate(2, spec, codes.T, backend=backend)
    assert np.array_equal(turned, regenerate(2, spec, codes.T.copy(), backend=backend))
    assert weights(2, spec, 0, 60, out=out, backend=backend) is out
    assert np.array_equal(out.reshape(-1), weights(2, spec, 0, 60, backend=backend))
    assert regenerate(2, spec, np.array(-1, dtype=np.int8), backend=backend).shape == ()


def test_read_only_codes_are_fine() -> None:
    codes = random_codes(100, 0.5)
    codes.flags.writeable = False
    assert regenerate(0, InitSpec("normal", 1.0, 0), codes).shape == (100,)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [2, -2, 127, -128])
@pytest.mark.parametrize("place", [0, 4999, 9999])
def test_other_codes_are_refused(backend: str, bad: int, place: int) -> None:
    codes = random_codes(10000, 0.5)
    codes[place] = bad
    with pytest.raises(SeedError, match=r"codes: expected only 0, \+1 and -1, found 1 other"):
        regenerate(0, InitSpec("normal", 1.0, 0), codes, start=3, backend=backend)


SPEC = InitSpec("normal", 1.0, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: weights(0, SPEC, 0, 4, backend="cupy"), "one of numpy, numba, found 'cupy'"),
        (lambda: weights(0, SPEC, 4, 3), "found start=4, stop=3"),
        (lambda: weights(0, SPEC, -1, 3), "found start=-1, stop=3"),
        (lambda: weights(0, SPEC, 0, 2**63), r"stop < 2\*\*63"),
        (lambda: weights(0, SPEC, 0.0, 3), "expected integers"),  # type: ignore[arg-type]
        (lambda: weights(-1, SPEC, 0, 3), "seed: expected an integer"),
        (lambda: weights(0, SPEC, 0, 3, threads=0), "threads: expected None or an integer"),
        (
            lambda: weights(0, SPEC, 0, 3, out=np.empty(4, np.float32)),
            r"out: expected a writable C-contiguous float32 array of 3 elements, found float32 "
            r"array of shape \(4,\)",
        ),
        (
            lambda: weights(0, SPEC, 0, 3, out=np.empty(6, np.float32)[::2]),
            "out: expected a writable C-contiguous",
        ),
        (
            lambda: regenerate(0, SPEC, np.zeros(3, np.int32)),
            r"codes: expected an int8 array, found int32 array of shape \(3,\)",
        ),
        (
            lambda: regenerate(0, SPEC, [0, 1]),  # type: ignore[arg-type]
            "codes: expected an int8 array, found list",
        ),
    ],
)
def test_bad_arguments_are_refused(call: Any, message: str) -> None:
    with pytest.raises(SeedError, match=message):
        call()


def test_compiled_rounding_of_integers_is_to_nearest_even() -> None:
    from pabzip.seeds import kernels

    ties = [2**24 + 1, 2**24 + 3, 2**31 + 128, 2**31 + 384, 2**32 - 128, 2**32 - 129, 2**32 - 1]
    for value in ties:
        found = kernels.one_weight(np.uint32(value), np.uint32(0), np.float32(1))
        assert found == struct.unpack("<f", struct.pack("<f", float(value)))[0]


def random_codes(count: int, keep: float) -> NDArray[np.int8]:
    """Return codes of which about ``keep`` survive, in runs, as pruning leaves them."""
    generator = np.random.default_rng(count)
    active = np.repeat(generator.random(-(-count // 3)), 3)[:count] < keep
    codes: NDArray[np.int8] = (active * generator.choice([-1, 1], count)).astype(np.int8)
    return codes
