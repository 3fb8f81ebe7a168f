"""Philox against published answers, and the layout of its counter."""

from __future__ import annotations

import numpy as np
import pytest

from pabzip.seeds import philox

# Known answers published with Random123 (kat_vectors, philox4x32 with 10 rounds).
PUBLISHED = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def _hexadecimal(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), PUBLISHED)
def test_published_known_answers(counter: str, key: str, expected: str) -> None:
    low, high = _hexadecimal(key)
    found = philox.philox4x32(np.array([_hexadecimal(counter)], dtype=np.uint32), (low, high))
    assert found.tolist() == [_hexadecimal(expected)]


@pytest.mark.parametrize("block", [0, 1, 2**32 - 1, 2**32, 2**32 + 1, 2**60 + 7])
def test_counter_holds_block_and_stream(block: int) -> None:
    seed, stream = 0x299F31D0A4093822, 0xFFFFFFFE
    counter = np.array([[block & 0xFFFFFFFF, block >> 32, stream, 0]], dtype=np.uint32)
    expected = philox.philox4x32(counter, (0xA4093822, 0x299F31D0))[0]
    found = philox.words(seed, stream, 4 * block, 4 * block + 4)
    assert found.tolist() == expected.tolist()


def test_any_range_is_a_piece_of_the_whole() -> None:
    whole = philox.words(3, 1, 0, 64)
    for start in range(9):
        for stop in range(start, 23):
            assert np.array_equal(philox.words(3, 1, start, stop), whole[start:stop])
