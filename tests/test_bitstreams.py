"""A seeded tensor's mask, signs and codes as bit arrays, against plain loops over the codes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from bitarray import bitarray
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from pabzip.formats import CODERS
from pabzip.seeds import InitSpec
from pabzip.ticket import DenseTensor, SeededTensor, Ticket, TiedTensor

SPEC = InitSpec("normal", 0.25, 3)
CODES = np.array([[0, 1, -1], [1, 0, 0]], np.int8)
PAPERS_CODE = {0: bitarray("0"), 1: bitarray("10"), -1: bitarray("11")}

arrays = st_numpy.arrays(
    np.int8,
    st_numpy.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=9),
    elements=st.integers(-1, 1),
)


def ticket(codes: Any = CODES) -> Ticket:
    values = np.zeros(2, np.float32)
    tensors = [
        SeededTensor("w", SPEC, codes),
        DenseTensor("b", values, "float32", "float32"),
        TiedTensor("again", "w"),
    ]
    return Ticket(seed=7, tensors=tensors)


def test_the_bits_of_a_small_tensor() -> None:
    made = ticket()
    assert made.mask("w") == bitarray("011100")
    assert made.signs("w") == bitarray("010")
    assert made.bitstream("w") == bitarray("010111000")
    assert made.bitstream("w").tobytes() == bytes([0b01011100, 0b00000000])  # big-endian
    assert made.mask("w").tobytes() == bytes([0b01110000])
    assert made.signs("w").tobytes() == bytes([0b01000000])
    assert made.mask("again") == made.mask("w")


@given(arrays)
def test_bits_are_those_of_plain_loops(codes: Any) -> None:
    made = ticket(codes)
    flat = [int(code) for code in codes.flat]
    assert made.mask("w").tolist() == [int(code != 0) for code in flat]
    assert made.signs("w").tolist() == [int(code < 0) for code in flat if code]
    expected = bitarray(endian="big")
    expected.encode(PAPERS_CODE, flat)
    found = made.bitstream("w")
    assert found == expected
    assert len(found) == codes.size + np.count_nonzero(codes)


@given(arrays)
def test_bits_give_the_codes_back(codes: Any) -> None:
    made = ticket(codes)
    decoded = np.array(list(made.bitstream("w").decode(PAPERS_CODE)), np.int8)
    assert np.array_equal(decoded.reshape(codes.shape), codes)
    rebuilt = np.zeros(codes.size, np.int8)
    signs = np.array(made.signs("w").tolist(), np.int8)
    rebuilt[np.array(made.mask("w").tolist(), bool)] = 1 - 2 * signs
    assert np.array_equal(rebuilt.reshape(codes.shape), codes)


@pytest.mark.parametrize("coder", list(CODERS))
def test_bits_do_not_depend_on_the_files_coder(coder: str) -> None:
    stream = io.BytesIO()
    made = ticket()
    made.save(stream, coder=coder)
    with Ticket.open(stream.getvalue()) as opened:
        assert opened.mask("w") == made.mask("w")
        assert opened.signs("w") == made.signs("w")
        assert opened.bitstream("w") == made.bitstream("w")


@pytest.mark.parametrize("method", ["mask", "signs", "bitstream"])
def test_other_tensors_have_no_bits(method: str) -> None:
    with pytest.raises(KeyError, match="b: expected a seeded tensor, found a dense one"):
        getattr(ticket(), method)("b")
    with pytest.raises(KeyError, match="nothing"):
        getattr(ticket(), method)("nothing")
