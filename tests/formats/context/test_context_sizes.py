"""Sizes that the coder promises, in bytes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pabzip.formats.context import Context
from pabzip.formats.huffman import Huffman
from pabzip.formats.seeded import SeededTensor

SHAPE = (1000, 1000)
COUNT = 10**6
FEW_BYTES = 12  # a tensor of a few weights: what its description takes beside its codes


def entropy(share: float) -> float:
    """Bits of one yes or no."""
    if share in (0.0, 1.0):
        return 0.0
    return -share * math.log2(share) - (1 - share) * math.log2(1 - share)


def huffman_size(tensors: list[SeededTensor]) -> int:
    return sum(map(len, Huffman().encode(0, tensors)[0]))


@pytest.mark.parametrize("keep", [0.01, 0.1, 0.5, 0.9, 0.99])
def test_a_random_mask_takes_its_entropy(make: Any, encode: Any, keep: float) -> None:
    one = make("w", SHAPE, keep=keep)
    survivors = int(np.count_nonzero(one.codes))
    least = (COUNT * entropy(survivors / COUNT) + survivors) / 8
    size = encode([one]).size
    assert size <= 1.005 * least
    assert size <= 1.001 * huffman_size([one])


@pytest.mark.parametrize("structure", ["random", "magnitude", "synflow"])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.9])
def test_few_flips_take_their_entropy(make: Any, encode: Any, structure: str, share: float) -> None:
    kept = make("w", (300, 300), structure=structure, signs="kept", keep=0.2)
    flips = np.random.default_rng(7).random(kept.codes.shape) < share
    flipped = SeededTensor("w", kept.spec, np.where(flips, -kept.codes, kept.codes))
    survivors = int(np.count_nonzero(kept.codes))
    flips_bytes = survivors * entropy(float(np.mean(flips[kept.codes != 0]))) / 8
    assert encode([flipped]).size <= 1.01 * (encode([kept]).size + flips_bytes)


@pytest.mark.parametrize(("signs", "extra"), [("kept", 0), ("flipped", 160), ("random", 2250)])
def test_signs_without_news_are_free(make: Any, encode: Any, signs: str, extra: int) -> None:
    """18,000 survivors: none flipped costs nothing; all flipped 0.07 bits each; half, one bit."""
    sizes = [
        encode([make("w", (300, 300), keep=0.2, signs=kind, structure="magnitude")]).size
        for kind in ("kept", signs)
    ]
    assert sizes[1] - sizes[0] <= extra + 4


def test_structure_is_found(make: Any, encode: Any) -> None:
    """A SynFlow-like mask costs less than a fortieth of a bit a weight; Huffman spends one."""
    one = make("w", (128, 128, 3, 3), structure="synflow", signs="kept", keep=0.1)
    assert encode([one]).size * 8 <= one.codes.size / 40
    one = make("w", (128, 128, 3, 3), structure="magnitude", signs="kept", keep=0.1)
    assert encode([one]).size <= 32


def test_empty_tensors_take_next_to_nothing(make: Any, encode: Any) -> None:
    tensors = [make(f"w{n}", (64, 64, 3, 3), structure="all empty") for n in range(20)]
    written = encode(tensors)
    assert set(written.payloads) == {b""}
    assert len(written.side) <= 20 * (64 + 64) // 8  # a bit a row or column, and soon less
    assert len(written.side) <= 60


SMALL = [(1,), (3,), (16,), (1, 1), (4, 4), (2, 3, 3, 3), (30, 2), (2, 100)]


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("structure", ["random", "magnitude", "empty"])
def test_small_tensors_exceed_huffman_by_a_few_bytes(
    make: Any, encode: Any, keep: float, structure: str
) -> None:
    for shape in SMALL:
        one = make("w", shape, keep=keep, structure=structure)
        assert encode([one]).size <= 1.001 * huffman_size([one]) + FEW_BYTES
    together = [make(f"w{n}", shape, stream=n, keep=keep) for n, shape in enumerate(SMALL)]
    assert encode(together).size <= 1.001 * huffman_size(together) + FEW_BYTES * len(SMALL)


def test_lengths_stay_within_what_a_header_may_declare(make: Any, encode: Any) -> None:
    for shape in SMALL:
        written = encode([make("w", shape, keep=0.5)])
        Context().check_length(written.entries[0], len(written.payloads[0]))
