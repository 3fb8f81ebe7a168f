"""Golden weights: the bits that every released version must give for ever.

``pytest tests/seeds --regenerate-expected`` rewrites tests/expected/seeds_weights.json from the
numpy reference. That is right only before the first release of a generator; afterwards a
difference here breaks the format, and no old file is at fault.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpmath import mp, mpf

from pabzip.seeds import BACKENDS, DISTRIBUTIONS, InitSpec, regenerate, weights
from pabzip.seeds.reference import TABLE_SHA256, normal_magnitudes

EXPECTED = Path(__file__).parents[1] / "expected"
WEIGHTS, QUANTILES = EXPECTED / "seeds_weights.json", EXPECTED / "seeds_quantiles.json"

# seed, stream, scale, start, count
PLACES = [
    (0, 0, 1.0, 0, 5000),
    (2**64 - 1, 2**32 - 1, float(np.float32(0.1)), 3, 4099),
    (0x123456789ABCDEF0, 17, 2.0**-64, 2**34 - 1001, 2002),
]


def _codes(count: int) -> Any:
    """Return a fixed pattern of codes: 0, 1, 0, -1, 0, 0, 1 over and over."""
    return np.resize(np.array([0, 1, 0, -1, 0, 0, 1], dtype=np.int8), count)


def _cases(backend: str) -> list[dict[str, Any]]:
    """Return every golden case as the backend computes it."""
    found = []
    for distribution in DISTRIBUTIONS:
        for seed, stream, scale, start, count in PLACES:
            spec = InitSpec(distribution, scale, stream)
            drawn = weights(seed, spec, start, start + count, backend=backend).astype("<f4")
            coded = regenerate(seed, spec, _codes(count), start=start, backend=backend)
            found.append(
                {
                    "distribution": distribution,
                    "seed": str(seed),
                    "stream": stream,
                    "scale": scale.hex(),
                    "start": start,
                    "count": count,
                    "first_bits": [f"{bits:08x}" for bits in drawn[:8].view("<u4").tolist()],
                    "weights_sha256": hashlib.sha256(drawn.tobytes()).hexdigest(),
                    "coded_sha256": hashlib.sha256(coded.astype("<f4").tobytes()).hexdigest(),
                }
            )
    return found


def _write(path: Path, provenance: str, **content: Any) -> None:
    """Write a golden file with a word on where it comes from."""
    text = json.dumps({"provenance": provenance, **content}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights(backend: str, regenerate_expected: bool) -> None:
    if regenerate_expected:
        _write(
            WEIGHTS,
            "pabzip's numpy reference (pabzip/seeds/reference.py), by pytest "
            "--regenerate-expected; weights as little-endian float32, codes 0 1 0 -1 0 0 1 "
            "repeated from the first element of the case on",
            normal_table_sha256=TABLE_SHA256,
            cases=_cases("numpy"),
        )
    golden = json.loads(WEIGHTS.read_text(encoding="utf-8"))
    assert golden["normal_table_sha256"] == TABLE_SHA256
    assert golden["cases"] == _cases(backend)


def test_quantiles(regenerate_expected: bool) -> None:
    values = [1, 3, 5, 1023, 2**16 + 1, 2**24 - 1, 2**31 - 1, 2**31 + 1, 3 * 2**30 + 1, 2**32 - 1]
    if regenerate_expected:
        with mp.workdps(40):
            exact = [
                mp.sqrt(2)
                * mp.findroot(
                    lambda x, v=value: mp.log(mp.erfc(x)) - mp.log(mpf(v) / mpf(2) ** 32), 1
                )
                for value in values
            ]
            _write(
                QUANTILES,
                "mpmath at 40 digits: x with P(standard normal > x) = v / 2**33, beside pabzip's "
                "fixed-point value with 28 bits after the point",
                cases=[
                    {"v": v, "quantile": mp.nstr(x, 20), "magnitude": int(magnitude)}
                    for v, x, magnitude in zip(
                        values, exact, normal_magnitudes(np.array(values, np.uint32)), strict=True
                    )
                ],
            )
    golden = json.loads(QUANTILES.read_text(encoding="utf-8"))["cases"]
    assert [case["v"] for case in golden] == values
    found = normal_magnitudes(np.array(values, dtype=np.uint32))
    assert found.tolist() == [case["magnitude"] for case in golden]
    for case in golden:
        assert abs(case["magnitude"] / 2**28 - float(case["quantile"])) <= 2.4e-8
