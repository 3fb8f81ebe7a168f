"""The paper's code, against its exact codewords and against bitarray."""

from __future__ import annotations

import numpy as np
import pytest
from bitarray import bitarray, decodetree
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pabzip.errors import FormatError
from pabzip.formats.huffman import decode, encode, huffman_bytes

CODEWORDS = {0: bitarray("0"), 1: bitarray("10"), -1: bitarray("11")}
TREE = decodetree(CODEWORDS)

codes_lists = st.one_of(
    st.lists(st.sampled_from([0, 1, -1]), max_size=300),
    st.lists(st.sampled_from([0] * 60 + [1, -1]), max_size=600),
    st.builds(lambda runs: [c for n, c in runs for c in [0] * n + [c]],
              st.lists(st.tuples(st.integers(0, 200), st.sampled_from([1, -1])), max_size=8)),
)  # fmt: skip


def as_codes(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.int8)


@pytest.mark.parametrize(
    ("codes", "payload"),
    [
        ([], ""),
        ([0], "00"),
        ([1], "80"),
        ([-1], "c0"),
        ([0] * 8, "00"),
        ([0] * 9, "0000"),
        ([1, 1, 1, 1], "aa"),
        ([-1, -1, -1, -1], "ff"),
        ([0, 1, -1, 0, 0, 1], "5900"),  # the example of SPEC.md
        ([0] * 63 + [-1], "000000000000000180"),  # a codeword across two 64-bit words
    ],
)
def test_exact_codewords(codes: list[int], payload: str) -> None:
    encoded = encode(as_codes(codes))
    assert encoded.hex() == payload
    survivors = len(codes) - codes.count(0)
    assert len(encoded) == huffman_bytes(len(codes), survivors)
    assert decode(encoded, len(codes), survivors).tolist() == codes


@settings(max_examples=200, deadline=None)
@given(codes_lists)
def test_same_bits_as_bitarray(values: list[int]) -> None:
    codes, bits = as_codes(values), bitarray()
    bits.encode(CODEWORDS, values)
    assert encode(codes) == bits.tobytes()
    decoded = decode(bits.tobytes(), len(values), int(np.count_nonzero(codes)))
    assert decoded.dtype == np.int8
    np.testing.assert_array_equal(decoded, codes)
    assert list(bits.decode(TREE)) == decoded.tolist()


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.3, 1.0])
def test_same_bits_as_bitarray_at_length(keep: float) -> None:
    rng = np.random.default_rng(1)
    codes = np.where(rng.random(100_003) < keep, rng.choice([-1, 1], 100_003), 0).astype(np.int8)
    bits = bitarray()
    bits.encode(CODEWORDS, codes.tolist())
    assert encode(codes) == bits.tobytes()
    np.testing.assert_array_equal(
        decode(bits.tobytes(), codes.size, int(np.count_nonzero(codes))), codes
    )


def slow_decode(payload: bytes, count: int, survivors: int) -> list[int] | None:
    """Decode symbol by symbol; None where the payload is not exactly so many codes."""
    bits = bitarray()
    bits.frombytes(payload)
    data, padding = bits[: count + survivors], bits[count + survivors :]
    if len(payload) != huffman_bytes(count, survivors) or padding.any():
        return None
    codes: list[int] = []
    place = 0
    while place < len(data):
        step = 2 if data[place] else 1
        if place + step > len(data):
            return None
        codes.append(0 if step == 1 else -1 if data[place + 1] else 1)
        place += step
    if len(codes) != count or len(codes) - codes.count(0) != survivors:
        return None
    return codes


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=40), st.integers(0, 200), st.integers(0, 200))
@example(b"\xff" * 16, 64, 64)
@example(b"\x00" * 8 + b"\x80", 65, 1)
def test_fault_12_any_bytes_are_decoded_exactly_or_refused(
    payload: bytes, count: int, survivors: int
) -> None:
    survivors = min(survivors, count)
    payload = payload[: huffman_bytes(count, survivors)].ljust(
        huffman_bytes(count, survivors), b"\0"
    )
    expected = slow_decode(payload, count, survivors)
    if expected is None:
        with pytest.raises(FormatError, match=r"expected .* found"):
            decode(payload, count, survivors)
    else:
        assert decode(payload, count, survivors).tolist() == expected


@pytest.mark.parametrize(
    ("payload", "count", "survivors", "message"),
    [
        ("00", 8, 1, "expected 2 bytes, found 1"),
        ("0000", 8, 0, "expected 1 bytes, found 2"),
        ("5901", 6, 3, "expected 7 zero bits of padding"),
        ("e0", 3, 1, "expected 3 codes with 1 survivors, found more"),  # 11 10: the last is cut
        ("00", 3, 1, "expected 3 codes with 1 survivors, found 0"),  # four zero bits for three
        ("aa", 6, 2, "expected 6 codes with 2 survivors, found more"),  # four codes in eight bits
        ("ff" * 16, 127, 1, "found more"),
        ("00" * 16, 64, 64, "found 0"),
    ],
)
def test_fault_12_too_few_too_many_and_padding(
    payload: str, count: int, survivors: int, message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        decode(bytes.fromhex(payload), count, survivors)


def test_codes_of_any_shape_are_read_in_row_major_order() -> None:
    codes = as_codes([0, 1, -1, 0, 0, 1]).reshape(2, 3)
    assert encode(codes) == bytes.fromhex("5900")


def test_payload_may_be_a_read_only_view() -> None:
    assert decode(memoryview(b"\x59\x00"), 6, 3).tolist() == [0, 1, -1, 0, 0, 1]
