"""Codes at two bits: layout, round trips, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pabzip.errors import SeedError
from pabzip.seeds import pack_codes, unpack_codes


def test_layout() -> None:
    codes = np.array([1, 0, -1, 0, -1, 1], dtype=np.int8)
    assert pack_codes(codes).tolist() == [0b00_11_00_01, 0b01_11]
    assert pack_codes(codes.reshape(2, 3)).tolist() == [0b00_11_00_01, 0b01_11]


@settings(max_examples=60)
@given(st.lists(st.sampled_from([0, 1, -1]), max_size=70))
def test_round_trip(values: list[int]) -> None:
    codes = np.array(values, dtype=np.int8)
    packed = pack_codes(codes)
    assert packed.dtype == np.uint8
    assert packed.shape == (-(-len(values) // 4),)
    unpacked = unpack_codes(packed, len(values))
    assert unpacked.dtype == np.int8
    assert unpacked.tolist() == values


def test_transposed_codes_are_taken_in_row_major_order() -> None:
    codes = np.array([[1, 0, 0], [-1, 1, 0]], dtype=np.int8).T
    assert unpack_codes(pack_codes(codes), 6).reshape(3, 2).tolist() == codes.tolist()


@pytest.mark.parametrize("values", [[0, 2], [-2], [127, -128, 0, 1, 5]])
def test_other_values_are_refused(values: list[int]) -> None:
    count = sum(abs(value) > 1 for value in values)
    with pytest.raises(SeedError, match=rf"only 0, \+1 and -1, found {count} other values"):
        pack_codes(np.array(values, dtype=np.int8))


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(SeedError, match="codes: expected an int8 array, found int64"):
        pack_codes(np.array([0, 1]))


@pytest.mark.parametrize(
    ("packed", "count", "message"),
    [
        (np.zeros(2, np.uint8), 9, "expected 3 bytes for 9 codes, found 2"),
        (np.zeros(2, np.uint8), 4, "expected 1 bytes for 4 codes, found 2"),
        (np.array([0b10], np.uint8), 4, "unused pattern 10"),
        (np.array([0b10000000], np.uint8), 4, "unused pattern 10"),
        (np.array([0b0100], np.uint8), 1, "expected zeros after the last code"),
        (np.zeros(2, np.int8), 8, "one-dimensional uint8 array"),
        (np.zeros(0, np.uint8), -1, "count of at least 0"),
    ],
)
def test_bad_packings_are_refused(packed: Any, count: int, message: str) -> None:
    with pytest.raises(SeedError, match=message):
        unpack_codes(packed, count)
