"""Frozen masks: which places the seed prunes or keeps for good.

``pytest tests/seeds --regenerate-expected`` rewrites tests/expected/seeds_frozen.json from the
numpy backend; after a release a difference here breaks the format.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pabzip.errors import SeedError
from pabzip.seeds import BACKENDS, Frozen
from pabzip.seeds.frozen import KEPT, PRUNED, SPLITS, WHOLE
from pabzip.seeds.philox import words

GOLDEN = Path(__file__).parents[1] / "expected" / "seeds_frozen.json"

# seed, stream, start, count, pruned, kept
PLACES = [
    (0, 0, 0, 5000, 32113, 13763),
    (2**64 - 1, 2**32 - 1, 3, 4099, 0, 6554),
    (0x123456789ABCDEF0, 17, 2**34 - 1001, 2002, 65535, 1),
]


def plain(seed: int, stream: int, start: int, stop: int, frozen: Frozen) -> list[int]:
    """Return the marks as SPEC.md states them, one place at a time."""
    found = []
    for word in words(seed, stream ^ 2**28, start, stop).tolist():
        value = 2 * (word % 2**31) + 1
        part = value // 2**16
        kept = frozen.pruned <= part < frozen.pruned + frozen.kept
        found.append(PRUNED if part < frozen.pruned else KEPT if kept else 0)
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", PLACES)
def test_marks_are_those_of_the_plain_statement(backend: str, place: tuple[int, ...]) -> None:
    seed, stream, start, count, pruned, kept = place
    frozen = Frozen(pruned, kept)
    found = frozen.marks(seed, stream, start, start + count, backend=backend)
    assert found.dtype == np.int8
    assert found.tolist() == plain(seed, stream, start, start + count, frozen)


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_marks(backend: str, regenerate_expected: bool) -> None:
    def cases(backend: str) -> list[dict[str, Any]]:
        found = []
        for seed, stream, start, count, pruned, kept in PLACES:
            marks = Frozen(pruned, kept).marks(seed, stream, start, start + count, backend=backend)
            found.append(
                {
                    "seed": str(seed),
                    "stream": stream,
                    "start": start,
                    "count": count,
                    "pruned": pruned,
                    "kept": kept,
                    "places": [int((marks == PRUNED).sum()), int((marks == KEPT).sum())],
                    "first": marks[:24].tolist(),
                    "sha256": hashlib.sha256(marks.tobytes()).hexdigest(),
                }
            )
        return found

    if regenerate_expected:
        text = {
            "provenance": "pabzip's numpy backend (pabzip/seeds/frozen.py), by pytest "
            "--regenerate-expected; marks as int8: 0 learned, 2 pruned, 3 kept",
            "cases": cases("numpy"),
        }
        GOLDEN.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
    assert json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"] == cases(backend)


def test_a_range_is_a_part_of_the_whole_and_threads_change_nothing() -> None:
    frozen = Frozen.of(0.3, 0.4)
    whole = frozen.marks(7, 3, 0, 600_000, threads=3)
    assert np.array_equal(whole, frozen.marks(7, 3, 0, 600_000, threads=1))
    assert np.array_equal(whole[12_345:77_777], frozen.marks(7, 3, 12_345, 77_777))
    assert abs((whole == PRUNED).mean() - 0.3) < 0.003
    assert abs((whole == KEPT).mean() - 0.4) < 0.003


def test_nothing_and_everything_may_be_frozen() -> None:
    assert not Frozen(0, 0).marks(1, 0, 0, 1000).any()
    assert (Frozen(0, WHOLE).marks(1, 0, 0, 1000) == KEPT).all()
    assert (Frozen(WHOLE, 0).marks(1, 0, 0, 1000) == PRUNED).all()


def test_the_frozen_places_of_a_weight_do_not_follow_its_weights() -> None:
    """Streams are apart: signs and magnitudes among the frozen are those among the learned."""
    from pabzip.seeds import InitSpec, weights

    drawn = weights(5, InitSpec("normal", 1.0, 0), 0, 200_000)
    marks = Frozen.of(0.5, 0.0).marks(5, 0, 0, 200_000)
    for values in (np.sign(drawn), np.abs(drawn)):
        assert abs(values[marks == 0].mean() - values[marks != 0].mean()) < 0.02


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("keep", [0.0, 0.05, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("split", SPLITS)
def test_a_split_freezes_the_ratio_and_leaves_room_for_the_keep_ratio(
    ratio: float, keep: float, split: str
) -> None:
    frozen = Frozen.for_keep_ratio(ratio, keep, split)
    pruned, kept = frozen.pruned / WHOLE, frozen.kept / WHOLE
    assert pruned + kept == pytest.approx(ratio, abs=3 / WHOLE)
    assert kept <= keep
    assert pruned <= 1 - keep
    learned_kept = keep - kept
    if split == "proportional":
        assert learned_kept == pytest.approx((1 - ratio) * keep, abs=2 / WHOLE)
    else:
        room = min(max((1 - ratio) / 2, 1 - ratio - (1 - keep)), keep)
        assert learned_kept == pytest.approx(room, abs=2 / WHOLE)


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ((-1, 0), "frozen: pruned: expected an integer from 0 to 65536, found -1"),
        ((0, 65537), "frozen: kept: expected an integer from 0 to 65536, found 65537"),
        ((0.5, 0), "frozen: pruned: expected an integer .* Frozen.of takes fractions"),
        ((True, 0), "frozen: pruned: expected an integer"),
        ((60000, 6000), "at most 65536 together, found 60000 and 6000"),
    ],
)
def test_wrong_fractions_are_refused(fractions: Any, message: str) -> None:
    with pytest.raises(SeedError, match=message):
        Frozen(*fractions)


def test_wrong_shares_are_refused() -> None:
    with pytest.raises(SeedError, match="kept: expected a fraction of 0 to 1, found 1.5"):
        Frozen.of(0.0, 1.5)
    with pytest.raises(SeedError, match="ratio: expected a fraction of 0 to 1, found nan"):
        Frozen.for_keep_ratio(float("nan"), 0.5)
    with pytest.raises(SeedError, match="split: expected one of proportional, even, found 'odd'"):
        Frozen.for_keep_ratio(0.5, 0.5, "odd")
