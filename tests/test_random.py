"""`randn`, `rand` and `signs`: the same bits from numpy, torch, slices, and for ever."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import pabzip
from pabzip.errors import SeedError
from pabzip.seeds import InitSpec, weights
from pabzip.seeds.philox import words

EXPECTED = Path(__file__).parent / "expected" / "random.json"
FUNCTIONS = {"randn": pabzip.randn, "rand": pabzip.rand, "signs": pabzip.signs}
TYPES = ("float32", "float64", "float16", "bfloat16")
PLACES = [(0, 0, 0), (2**64 - 1, 2**32 - 1, 3), (0x123456789ABCDEF0, 17, 2**34 - 1001)]
"""Seed, stream, start."""


def plain(name: str, seed: int, stream: int, start: int, count: int) -> np.ndarray:
    """What the docstring says, in float64 (which holds every float32)."""
    drawn = words(seed, stream, start, start + count)
    rest, negative = drawn & np.uint32(0x7FFFFFFF), drawn >> np.uint32(31)
    sign = 1.0 - 2.0 * negative
    if name == "signs":
        return sign
    if name == "rand":
        return np.floor(rest / 2.0**7) / 2.0**24
    spec = InitSpec("normal", 1.0, stream)
    return weights(seed, spec, start, start + count, backend="numpy").astype(np.float64)


def cases() -> list[dict[str, Any]]:
    found = []
    for name, draw in FUNCTIONS.items():
        for seed, stream, start in PLACES:
            first = draw(8, seed, stream, start=start)
            digests = {}
            for dtype in TYPES:
                values = draw((3, 1001), seed, stream, start=start, dtype=dtype)
                little = values.astype(values.dtype.newbyteorder("<"))
                digests[dtype] = hashlib.sha256(little.tobytes()).hexdigest()
            found.append(
                {
                    "function": name,
                    "seed": str(seed),
                    "stream": stream,
                    "start": start,
                    "first_bits": [f"{bits:08x}" for bits in first.view(np.uint32).tolist()],
                    "sha256": digests,
                }
            )
    return found


def test_known_answers(regenerate_expected: bool) -> None:
    if regenerate_expected:
        provenance = "pabzip.randn, rand, signs: 8 float32 as bits, and 3,003 elements, by SHA-256"
        text = json.dumps({"provenance": provenance, "cases": cases()}, indent=1)
        EXPECTED.write_text(text + "\n", encoding="utf-8")
    assert json.loads(EXPECTED.read_text(encoding="utf-8"))["cases"] == cases()


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("seed", "stream", "start"), PLACES)
def test_what_the_words_say(name: str, seed: int, stream: int, start: int) -> None:
    expected = plain(name, seed, stream, start, 2000)
    found = FUNCTIONS[name](2000, seed, stream, start=start, threads=1)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", TYPES)
def test_types_of_numpy_and_torch(name: str, dtype: str) -> None:
    """Halves are the float32 rounded as torch rounds; float64 is the float32."""
    draw, kind = FUNCTIONS[name], getattr(torch, dtype)
    single = torch.from_numpy(draw((70, 1000), 5, 2))
    expected = single.to(kind)
    by_dtype, by_device = (
        draw((70, 1000), 5, 2, dtype=kind),
        draw([70, 1000], 5, 2, dtype=dtype, device="cpu"),
    )
    for found in (by_dtype, by_device):
        assert isinstance(found, torch.Tensor)
        assert found.dtype == kind
        assert torch.equal(found, expected)
    array = draw((70, 1000), 5, 2, dtype=dtype)
    assert isinstance(array, np.ndarray)
    bits = expected.view(torch.uint16).numpy() if dtype == "bfloat16" else expected.numpy()
    np.testing.assert_array_equal(array, bits)
    into_tensor, into_array = torch.empty_like(expected), np.empty_like(bits)
    assert draw(None, 5, 2, out=into_tensor) is into_tensor
    assert draw((70, 1000), 5, 2, out=into_array) is into_array
    assert torch.equal(into_tensor, expected)
    np.testing.assert_array_equal(into_array, bits)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_slices_and_shapes(name: str) -> None:
    """An element depends on its index alone: rows need not be drawn with the rows before."""
    draw = FUNCTIONS[name]
    whole = draw((1000, 37), 9, 4)
    for first, last in [(0, 1), (1, 2), (3, 700), (999, 1000), (5, 5)]:
        rows = draw((last - first, 37), 9, 4, start=first * 37)
        np.testing.assert_array_equal(rows, whole[first:last])
    np.testing.assert_array_equal(draw(37_000, 9, 4), whole.reshape(-1))
    np.testing.assert_array_equal(draw((1000, 37), 9, 4, threads=3), whole)
    assert draw((), 9, 4, start=41) == whole[1, 4]
    tail = draw(37, 9, 4, start=963 * 37, dtype=torch.float64)
    np.testing.assert_array_equal(tail.numpy(), whole[963])
    assert not np.array_equal(draw((1000, 37), 9, 5), whole)
    assert not np.array_equal(draw((1000, 37), 8, 4), whole)


def test_distributions() -> None:
    count = 400_000
    normal, uniform = pabzip.randn(count, 1), pabzip.rand(count, 1)
    assert stats.kstest(normal, "norm").pvalue > 1e-3
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert uniform.min() >= 0
    assert uniform.max() < 1
    signs = pabzip.signs(count, 1, dtype="int8")
    assert signs.dtype == np.int8
    assert set(signs.tolist()) == {-1, 1}
    assert abs(int(signs.astype(np.int64).sum())) < 4 * count**0.5
    np.testing.assert_array_equal(signs, np.sign(normal))  # as documented


def test_parameters_are_written_in_place() -> None:
    layer = torch.nn.Linear(30, 20)
    pabzip.randn(None, 7, out=layer.weight)
    assert torch.equal(layer.weight.detach(), pabzip.randn((20, 30), 7, device="cpu"))
    assert layer.weight.requires_grad
    before = torch.get_rng_state()
    pabzip.signs(10, 3, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((3, -1), {}, "seed: expected an integer from 0"),
        ((3, 0, 2**32), {}, "stream: expected an integer from 0"),
        ((3, 0, 1.5), {}, r"stream: expected an integer, found 1\.5"),
        ((3, 0), {"start": 1.5}, r"start: expected an integer, found 1\.5"),
        (((3, -1), 0), {}, r"shape: expected integers of at least 0, found '\(3, -1\)'"),
        ((None, 0), {}, "shape: expected one where there is no out, found None"),
        ((2.5, 0), {}, "shape: expected integers"),
        ((3, 0), {"start": -1}, "range: expected integers 0 <= start"),
        ((3, 0), {"start": 2**63 - 2}, "range: expected integers 0 <= start"),
        ((3, 0), {"dtype": "int32"}, "dtype: expected one of float32, .* found 'int32'"),
        ((3, 0), {"dtype": "int8"}, "dtype: expected one of float32, .* found 'int8'"),
        ((3, 0), {"dtype": torch.complex64}, "dtype: expected one of .* found 'complex64'"),
        ((3, 0), {"dtype": ">f4"}, "found 'float32 of the other byte order'"),
        ((3, 0), {"out": [1.0]}, "out: expected a numpy array or a torch tensor, found list"),
        ((3, 0), {"out": np.zeros(4, np.float32)}, r"that of out, \(4,\), found \(3,\)"),
        ((3, 0), {"out": np.zeros(6, np.float32)[::2]}, "out: expected a writable C-contiguous"),
        ((3, 0), {"out": torch.zeros(6)[::2]}, "out: expected a contiguous tensor"),
        ((3, 0), {"out": np.zeros(3), "dtype": "float32"}, "that of out, float64, found float32"),
        ((3, 0), {"out": np.zeros(3), "device": "cpu"}, "device: expected none with a numpy"),
        ((3, 0), {"out": torch.zeros(3), "device": "meta"}, "expected that of out, cpu, found"),
    ],
)
def test_bad_arguments(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(SeedError, match=message):
        pabzip.randn(*arguments, **options)


def test_a_meta_tensor_stays_one() -> None:
    assert pabzip.randn((3, 4), 0, device="meta").shape == (3, 4)


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import numpy, pabzip
out = numpy.empty((2, 3), numpy.float16)
print(pabzip.randn(None, 1, out=out) is out, pabzip.rand(2, 1, dtype="bfloat16").dtype)
try:
    pabzip.signs(2, 1, device="cpu")
except pabzip.PabzError as error:
    print(error)
"""


def test_numpy_needs_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "True uint16"
    assert "signs of a torch tensor needs torch, which is not installed" in second


INTERPRETED = """
import torch, pabzip
from pabzip.seeds import InitSpec, cuda
for name, kind in [("randn", "normal"), ("rand", "uniform"), ("signs", "signed_constant")]:
    types = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
    for dtype in [*types, torch.int8] if name == "signs" else types:
        for start, count in [(0, 1), (3, 2100), (2**34 - 1001, 2050)]:
            out = torch.empty(count, dtype=dtype)
            cuda.draw(7, InitSpec(kind, 1.0, 2**31 + 5), start, out, fraction=name == "rand")
            expected = getattr(pabzip, name)(count, 7, 2**31 + 5, start=start, dtype=dtype)
            assert torch.equal(out, expected), (name, dtype, start)
print("equal")
"""


def test_the_kernel_of_the_gpu_gives_these_bits() -> None:
    """By Triton's interpreter, as tests/seeds/test_triton.py does."""
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", TYPES)
def test_a_gpu_gives_these_bits(name: str, dtype: str) -> None:
    draw = FUNCTIONS[name]
    for start, count in [(0, 100_000), (5, 4099), (2**34 - 1001, 4098)]:
        found = draw(count, 3, 2, start=start, dtype=dtype, device="cuda")
        assert found.is_cuda
        assert torch.equal(found.cpu(), draw(count, 3, 2, start=start, dtype=dtype, device="cpu"))


def test_the_example_of_adapters_that_travel_as_a_seed() -> None:
    """examples/vera.py checks itself that the loaded adapters read as the trained ones do."""
    example = Path(__file__).parents[1] / "examples" / "vera.py"
    done = subprocess.run(
        [sys.executable, example],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    numbers = [float(number) for number in re.findall(r"([\d.]+)%", done.stdout)]
    plain, negative, adapted = numbers
    assert plain > 90
    assert negative < 20
    assert adapted > 80
    assert int(re.search(r"adapters of (\d+) bytes", done.stdout)[1]) < 1000
