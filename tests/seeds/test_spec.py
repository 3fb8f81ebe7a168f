"""Init specs, seeds and schemes: what is accepted, what is refused, and the scales."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from pabzip.errors import SeedError
from pabzip.seeds import DISTRIBUTIONS, SCHEMES, InitSpec, check_seed, scheme_spec
from pabzip.seeds.spec import check_backend, fans


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1, np.uint64(2**64 - 1), np.int8(3)])
def test_seeds_accepted(seed: Any) -> None:
    found = check_seed(seed)
    assert type(found) is int
    assert found == int(seed)


@pytest.mark.parametrize("seed", [-1, 2**64, True, np.bool_(True), 1.0, "1", None])
def test_seeds_refused(seed: Any) -> None:
    with pytest.raises(
        SeedError, match=r"seed: expected an integer from 0 to 18446744073709551615"
    ):
        check_seed(seed)


@pytest.mark.parametrize("scale", [2.0**-64, 2.0**64, 1, np.float32(0.1), float(np.float32(0.3))])
def test_scales_accepted(scale: Any) -> None:
    spec = InitSpec("normal", scale, 0)
    assert type(spec.scale) is float
    assert spec.scale == float(scale)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (0.1, "expected a float32 value, found 0.1; round it once"),
        (0.0, r"expected 2\*\*-64 <= scale"),
        (-1.0, r"expected 2\*\*-64 <= scale"),
        (2.0**65, r"<= 2\*\*64, found"),
        (2.0**-65, r"expected 2\*\*-64 <= scale"),
        (math.nan, r"found nan"),
        (math.inf, r"found inf"),
        ("1", "scale: expected a float32 value, found '1'"),
        (True, "scale: expected a float32 value, found True"),
    ],
)
def test_scales_refused(scale: Any, message: str) -> None:
    with pytest.raises(SeedError, match=message):
        InitSpec("normal", scale, 0)


@pytest.mark.parametrize("stream", [-1, 2**32, 1.5, True])
def test_streams_refused(stream: Any) -> None:
    with pytest.raises(SeedError, match="stream: expected an integer from 0 to 4294967295"):
        InitSpec("normal", 1.0, stream)


def test_unknown_distribution_lists_the_valid_ones() -> None:
    with pytest.raises(SeedError, match="one of normal, uniform, signed_constant, found 'cauchy'"):
        InitSpec("cauchy", 1.0, 0)


def test_spec_is_immutable_and_compares_by_value() -> None:
    spec = InitSpec("uniform", 0.5, 3)
    half: Any = np.float32(0.5)
    three: Any = np.uint8(3)
    assert spec == InitSpec("uniform", half, three)
    with pytest.raises(FrozenInstanceError):
        spec.stream = 4  # type: ignore[misc]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("scale", [2.0**-64, float(np.float32(0.1)), 2.0**64])
def test_factor_is_exact(distribution: str, scale: float) -> None:
    bits = {"normal": 28, "uniform": 32, "signed_constant": 0}[distribution]
    assert float(InitSpec(distribution, scale, 0).factor) == math.ldexp(scale, -bits)


@pytest.mark.parametrize(
    ("scheme", "mode", "gain", "distribution", "scale"),
    [
        ("kaiming_normal", "fan_in", None, "normal", math.sqrt(2 / 45)),
        ("kaiming_normal", "fan_out", None, "normal", math.sqrt(2 / 63)),
        ("kaiming_normal", "fan_in", 1.0, "normal", math.sqrt(1 / 45)),
        ("kaiming_uniform", "fan_in", None, "uniform", math.sqrt(6 / 45)),
        ("kaiming_signed_constant", "fan_out", 3.0, "signed_constant", 3 / math.sqrt(63)),
        ("xavier_normal", "fan_in", None, "normal", math.sqrt(2 / 108)),
        ("xavier_uniform", "fan_in", 2.0, "uniform", 2 * math.sqrt(6 / 108)),
        ("torch_default", "fan_in", None, "uniform", 1 / math.sqrt(45)),
    ],
)
def test_schemes(
    scheme: str, mode: str, gain: float | None, distribution: str, scale: float
) -> None:
    spec = scheme_spec(scheme, (7, 5, 3, 3), stream=9, mode=mode, gain=gain)
    assert (spec.distribution, spec.stream) == (distribution, 9)
    # Two float64 formulas of the same number may round to neighboring float32 values.
    assert abs(spec.scale - scale) <= np.spacing(np.float32(scale))


def test_every_scheme_is_covered_and_fans_are_torchs() -> None:
    init = pytest.importorskip("torch.nn.init")
    torch = pytest.importorskip("torch")
    for shape in [(7, 5), (7, 5, 3), (7, 5, 3, 2), (64, 3, 7, 7), (2, 3, 4, 5, 6)]:
        assert fans(shape) == init._calculate_fan_in_and_fan_out(torch.empty(shape))
        for scheme in SCHEMES:
            assert scheme_spec(scheme, shape, stream=0).distribution in DISTRIBUTIONS


def test_torch_default_has_torchs_bound() -> None:
    torch = pytest.importorskip("torch")
    with torch.random.fork_rng():
        weight = torch.nn.Conv2d(16, 256, 3).weight.detach()
    bound = scheme_spec("torch_default", tuple(weight.shape), stream=0).scale
    assert 0.999 * bound < float(weight.abs().max()) <= bound * (1 + 1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "orthogonal"}, "expected one of kaiming_normal, .*torch_default, found 'ortho"),
        ({"mode": "fan"}, "mode: expected one of fan_in, fan_out, found 'fan'"),
        ({"gain": 0.0}, "gain: expected a finite number above 0, found 0.0"),
        ({"gain": math.nan}, "gain: expected a finite number above 0, found nan"),
        ({"gain": 1e30}, r"scale: expected 2\*\*-64 <= scale <= 2\*\*64"),
        ({"gain": 1e300}, r"scale: expected .*found inf"),
        ({"shape": (5,)}, r"shape: expected two or more dimensions .*found \(5,\)"),
        ({"shape": (5, 0)}, r"found \(5, 0\); keep this tensor dense"),
        ({"scheme": "xavier_normal", "mode": "fan_out"}, "mode: xavier_normal has none"),
        ({"scheme": "torch_default", "gain": 1.0}, "gain: torch_default has none, found 1.0"),
    ],
)
def test_schemes_refused(arguments: dict[str, Any], message: str) -> None:
    full: dict[str, Any] = {"scheme": "kaiming_normal", "shape": (4, 4), "stream": 0} | arguments
    with pytest.raises(SeedError, match=message):
        scheme_spec(**full)


@pytest.mark.parametrize("entries", [["normal", "uniform"], [*DISTRIBUTIONS, "laplace"]])
def test_a_backend_serves_every_distribution_and_no_other(entries: list[str]) -> None:
    message = f"numpy backend: expected .* normal, uniform, signed_constant, found {entries[0]}"
    with pytest.raises(SeedError, match=message):
        check_backend("numpy", dict.fromkeys(entries, 0))


@pytest.mark.parametrize("module", ["reference", "kernels", "cuda"])
def test_no_backend_loads_without_a_distribution(module: str) -> None:
    """In a process where one more distribution is declared than the backends have."""
    pytest.importorskip("triton" if module == "cuda" else "numba")
    code = (
        "from pabzip.seeds import spec\n"
        "spec.DISTRIBUTIONS += ('laplace',)\n"
        f"import importlib, sys; sys.modules.pop('pabzip.seeds.{module}', None)\n"
        f"importlib.import_module('pabzip.seeds.{module}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "SeedError" in done.stderr
    assert "backend: expected an entry for each of normal, uniform" in done.stderr


def test_kernels_refuse_a_kind_that_they_do_not_know() -> None:
    from pabzip.seeds.kernels import KINDS, word_magnitudes

    words = np.zeros(4, dtype=np.uint32)
    table = np.zeros((3, 2048), dtype=np.uint32)
    with pytest.raises(ValueError, match="expected one of KINDS"):
        word_magnitudes(len(KINDS), words, table, np.empty_like(words))
