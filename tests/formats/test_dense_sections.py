"""Dense tensors: every type to the bit, half precision, grouping, and what is refused (14)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pabzip.errors import FormatError, PackError
from pabzip.formats import DENSE_TYPES, bfloat16_to_float32, rounded
from pabzip.formats.dense import DenseEntry, to_stored
from pabzip.formats.dense_sections import decode_group
from pabzip.ticket import DenseTensor, Ticket

Save = Callable[..., bytes]


def dense(name: str, values: Any, dtype: str = "float32", stored: str | None = None) -> DenseTensor:
    array = np.asarray(values, dtype=DENSE_TYPES[dtype].numpy)
    return DenseTensor(name, array, dtype, stored or dtype)


def extremes(dtype: str) -> np.ndarray:
    kind = DENSE_TYPES[dtype].numpy
    if dtype == "bool":
        return np.array([True, False, True])
    if dtype == "bfloat16":
        return np.array([0, 0x8000, 1, 0x7F7F, 0xFF7F, 0x3F80], dtype=kind)
    if kind.kind == "f":
        limits = np.finfo(kind)
        return np.array([0.0, -0.0, limits.max, limits.min, limits.smallest_subnormal, 1 / 3], kind)
    limits_of_integer = np.iinfo(kind)
    return np.array(
        [limits_of_integer.min, -1 if kind.kind == "i" else 1, 0, limits_of_integer.max]
    )


@pytest.mark.parametrize("dtype", DENSE_TYPES)
@pytest.mark.parametrize("scalar", [False, True])
def test_every_type_to_the_bit(dtype: str, scalar: bool, save: Save) -> None:
    values = extremes(dtype).astype(DENSE_TYPES[dtype].numpy)
    values = values[-1].reshape(()) if scalar else values
    original = DenseTensor("x", np.asarray(values), dtype, dtype)
    ticket = Ticket(seed=1, tensors=[original])
    loaded = Ticket.open(save(ticket)).dense("x")
    assert (loaded.dtype, loaded.stored, loaded.shape) == (dtype, dtype, values.shape)
    assert loaded.values.dtype == DENSE_TYPES[dtype].numpy
    assert loaded.values.tobytes() == original.values.tobytes()


def test_raw_bytes_of_a_section() -> None:
    """Types by first appearance; within one, its tensors in order; lowest bytes first."""
    tensors = [
        dense("a", [0x0102, 0x0304], "int16"),
        dense("b", [0x55], "int8"),
        dense("c", 0x0506, "int16"),
    ]
    entries = [DenseEntry(t.name, t.shape, t.dtype, t.stored) for t in tensors]
    back = decode_group(entries, "raw", bytes.fromhex("02 04 06 01 03 05 55"), "section")
    for tensor, found in zip(tensors, back, strict=True):
        assert found.shape == tensor.shape
        np.testing.assert_array_equal(found.values, tensor.values)


def test_what_writers_take(save: Save, take_apart: Callable[[bytes], Any]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 4000).astype(np.uint8)
    ticket = Ticket(seed=0, tensors=[dense("x", noise, "uint8")])
    assert take_apart(save(ticket)).fields["dense"] == [[1, "raw", 4000]]
    wide = np.tile(noise, 5).astype(np.int16)
    parts = take_apart(save(Ticket(seed=0, tensors=[dense("x", wide, "int16")])))
    assert parts.fields["dense"][0][:2] == [1, "deflate"]
    assert zlib.decompress(parts.payloads[0], -15) == noise.tobytes() * 5 + bytes(20000)
    parts = take_apart(save(Ticket(seed=0, tensors=[dense("x", np.ones(1000))])))
    assert parts.fields["dense"][0][:2] == [1, "adaptive"]


def test_groups_of_at_most_one_mebibyte(save: Save, take_apart: Callable[[bytes], Any]) -> None:
    def counts(sizes: list[int]) -> list[int]:
        ones = [dense(f"t{n}", np.zeros(size), "uint8") for n, size in enumerate(sizes)]
        parts = take_apart(save(Ticket(seed=0, tensors=ones)))
        return [count for count, *_ in parts.fields.get("dense", [])]

    mebibyte = 1 << 20
    assert counts([]) == []
    assert counts([4] * 100) == [100]
    assert counts([mebibyte] * 2) == [1, 1]
    assert counts([10, mebibyte + 1, 10, mebibyte - 10, 1]) == [1, 1, 2, 1]


def test_many_tensors_in_several_sections(save: Save) -> None:
    rng = np.random.default_rng(3)
    tensors = [dense(f"t{n}", rng.standard_normal(100_000)) for n in range(7)]
    ticket = Ticket.open(save(Ticket(seed=0, tensors=tensors)))
    for tensor in reversed(tensors):
        np.testing.assert_array_equal(ticket.weight(tensor.name), tensor.values)


def test_what_was_read_may_be_changed(save: Save) -> None:
    ticket = Ticket.open(save(Ticket(seed=0, tensors=[dense("a", [1.0]), dense("b", [2.0])])))
    ticket.dense("a").values[:] = 5
    assert ticket.dense("a").values.tolist() == [1.0]


# half precision


def nearest_bfloat16(value: float) -> int:
    """Round to nearest even by exact fractions: the definition, one value at a time."""
    finite = np.arange(0x7F80, dtype=np.uint32) << 16
    table = finite.view(np.float32).astype(np.float64)
    magnitude = abs(value)
    above = int(np.searchsorted(table, magnitude))
    top = Fraction(2) ** 128
    candidates = [
        (Fraction(float(table[at])) if at < 0x7F80 else top, at)
        for at in range(max(above - 1, 0), min(above + 1, 0x7F80) + 1)
    ]
    best = min(candidates, key=lambda pair: (abs(pair[0] - Fraction(magnitude)), pair[1] & 1))
    sign = 0x8000 if np.signbit(value) else 0
    return sign | best[1]


@settings(max_examples=200, deadline=None)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
@example(1.00390625)  # a tie between 0x3f80 and 0x3f81: even
@example(1.01171875)  # a tie between 0x3f81 and 0x3f82: even
@example(3.4e38)
@example(-0.0)
def test_float32_to_bfloat16(value: float) -> None:
    bits = to_stored(np.array([value], np.float32), "float32", "bfloat16")
    assert int(bits[0]) == nearest_bfloat16(value)


@settings(max_examples=200, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-3.4e38, max_value=3.4e38))
@example(1.00390625 + 2**-50)  # rounding twice would see a tie
@example(1.00390625 - 2**-50)
@example(1.01171875 + 2**-40)
@example(2.0**-140)
def test_float64_to_bfloat16_is_rounded_once(value: float) -> None:
    bits = to_stored(np.array([value], np.float64), "float64", "bfloat16")
    assert int(bits[0]) == nearest_bfloat16(value)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_half_precision_loads_as_its_own_type(dtype: str, stored: str, save: Save) -> None:
    values = np.random.default_rng(0).standard_normal((3, 5)).astype(dtype)
    ticket = Ticket(seed=0, tensors=[dense("x", values, dtype), dense("n", 3, "int64")])
    loaded = Ticket.open(save(ticket, dense_dtype=stored))
    found = loaded.dense("x")
    assert (found.dtype, found.stored, found.values.dtype) == (dtype, stored, np.dtype(dtype))
    if stored == "float16":
        expected = values.astype(np.float16).astype(dtype)
    else:
        bits = np.vectorize(nearest_bfloat16, otypes=[np.uint16])(values)
        expected = bfloat16_to_float32(bits).astype(dtype)
    np.testing.assert_array_equal(found.values, expected)
    assert loaded.verify() != ticket.sha256()  # the digest is of the values that load
    assert loaded.dense("n").stored == "int64"
    again = Ticket.open(save(loaded))
    assert again.dense("x").stored == stored
    assert again.verify() == loaded.verify()


@pytest.mark.parametrize(("stored", "value"), [("float16", 65520.0), ("bfloat16", 3.4e38)])
def test_half_precision_overflow(stored: str, value: float, save: Save) -> None:
    ticket = Ticket(seed=0, tensors=[dense("fc.bias", [1.0, value, -value])])
    with pytest.raises(PackError, match=f"'fc.bias': .*{stored}, found 2 that overflow"):
        save(ticket, dense_dtype=stored)


def test_half_tensors_stay_as_they_are() -> None:
    tensor = dense("x", [1.5], "float16")
    assert rounded(tensor, "bfloat16") is tensor
    assert rounded(tensor, None) is tensor


@pytest.mark.parametrize("name", ["float32", "half", "", 16])
def test_unknown_dense_dtype(name: Any, save: Save) -> None:
    ticket = Ticket(seed=0, tensors=[dense("x", [1.0])])
    with pytest.raises(PackError, match="dense_dtype: expected None or one of float16, bfloat16"):
        save(ticket, dense_dtype=name)


def test_stored_must_hold_the_values() -> None:
    with pytest.raises(PackError, match="float16 holds exactly, found 1 that it does not"):
        Ticket(seed=0, tensors=[dense("x", [0.5, 1 / 3], "float32", "float16")])


def test_bfloat16_weights_are_exact_float32(save: Save) -> None:
    bits = np.array([0x3F80, 0xC000, 0x0001], np.uint16)
    ticket = Ticket.open(save(Ticket(seed=0, tensors=[dense("x", bits, "bfloat16")])))
    values = ticket.weight("x")
    assert values.dtype == np.float32
    assert values.tolist() == [1.0, -2.0, 2.0**-133]


# 14 and 15: values that are refused, by writer and reader alike


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_fault_14_values_that_are_not_finite(dtype: str, bad: str) -> None:
    bits = {"nan": 0x7FC1, "inf": 0x7F80, "-inf": 0xFF80}
    value = bits[bad] if dtype == "bfloat16" else float(bad)
    with pytest.raises(
        PackError,
        match="'x': expected finite values, found 1 that are not; .*: leave such a tensor out",
    ):
        Ticket(seed=0, tensors=[dense("x", [0, value], dtype)])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fault_14_negative_variance(dtype: str) -> None:
    value = 0xBF80 if dtype == "bfloat16" else -1.0
    with pytest.raises(PackError, match="variances of at least 0, found 1 below"):
        Ticket(seed=0, tensors=[dense("a.running_var", [0, value], dtype)])
    Ticket(seed=0, tensors=[dense("a.running_variance", [0, value], dtype)])


@pytest.mark.parametrize(
    ("name", "dtype", "raw", "message"),
    [
        ("x", "float32", struct.pack("<f", float("nan")), "expected finite values"),
        ("x", "bfloat16", b"\x80\xff", "expected finite values"),
        ("running_var", "float64", struct.pack("<d", -1e-300), "variances of at least 0"),
        ("x", "bool", b"\x02", "expected booleans of 0 or 1"),
    ],
)
def test_fault_14_values_in_a_file(
    name: str, dtype: str, raw: bytes, message: str, parts: Any
) -> None:
    parts.fields["tensors"] = [[name, [], dtype]]
    parts.fields["dense"] = [[1, "raw", len(raw)]]
    parts.payloads = [raw]
    ticket = Ticket.open(parts.sign())
    with pytest.raises(FormatError, match=message):
        ticket.dense(name)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"\xff" * 20, "expected a deflate stream"),
        (zlib.compress(bytes(47), wbits=-15), "expected 48 bytes once inflated, found 47"),
        (zlib.compress(bytes(49), wbits=-15), "expected 48 bytes once inflated, found more"),
        (zlib.compress(bytes(48), wbits=-15) + b"x", "found 1 bytes after it"),
        (zlib.compress(bytes(48), wbits=-15)[:-1], "or no end"),
    ],
)
def test_fault_15_deflate_streams_of_another_size(payload: bytes, message: str, parts: Any) -> None:
    parts.fields["dense"][0][1:] = ["deflate", len(payload)]
    parts.payloads[-1] = payload
    ticket = Ticket.open(parts.sign())
    with pytest.raises(FormatError, match=message):
        ticket.dense("fc.bias")
    assert ticket.codes("conv.weight").shape == (4, 3, 3, 3)  # other sections are still good
