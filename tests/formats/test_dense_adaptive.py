"""The ``adaptive`` encoding: to the bit, as SPEC.md says, small, and strict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pabzip.errors import FormatError, PackError
from pabzip.formats import DENSE_TYPES
from pabzip.formats.dense import DenseEntry
from pabzip.formats.dense_adaptive import decode_adaptive, encode_adaptive
from pabzip.formats.dense_sections import decode_group, encode_group
from pabzip.formats.limits import deflate
from pabzip.ticket import DenseTensor, Ticket

Plain = Callable[[list[list[Any]], bytes], dict[str, bytes]]
TYPES = tuple(DENSE_TYPES)


def entries_of(named: Sequence[tuple[str, str, np.ndarray]]) -> list[DenseEntry]:
    return [DenseEntry(name, values.shape, stored, stored) for name, stored, values in named]


def encoded(named: Sequence[tuple[str, str, np.ndarray]]) -> bytes:
    return encode_adaptive(entries_of(named), [values for _, _, values in named])


def check(named: Sequence[tuple[str, str, np.ndarray]], plain: Plain | None = None) -> bytes:
    """Encode, decode by both decoders, compare, and return the payload."""
    payload = encoded(named)
    found = decode_adaptive(entries_of(named), payload, "section")
    for (name, _, values), back in zip(named, found, strict=True):
        assert back.dtype == values.dtype, name
        assert back.tobytes() == values.tobytes(), name
    if plain is not None:
        rows = [[name, list(values.shape), stored] for name, stored, values in named]
        assert plain(rows, payload) == {name: values.tobytes() for name, _, values in named}
    return payload


def batch_norms(channels: Sequence[int], *, empty: float, seed: int = 0) -> list[Any]:
    """Vectors as training leaves them: empty channels agree, the others are noise."""
    rng = np.random.default_rng(seed)
    named: list[Any] = []
    for layer, count in enumerate(channels):
        active = rng.random(count) >= empty
        for role, values, rest in [
            ("weight", rng.normal(1, 0.1, count), 0.97),
            ("bias", rng.normal(0, 0.1, count), 0.0),
            ("running_mean", rng.normal(-0.3, 0.5, count), 0.0),
            ("running_var", rng.gamma(2, 0.3, count), 1e-11),
        ]:
            kept = np.where(active, values, rest).astype("<f4")
            named.append((f"bn{layer}.{role}", "float32", kept))
        named.append((f"bn{layer}.num_batches_tracked", "int64", np.array(240, "<i8")))
    return named


@st.composite
def sections(draw: st.DrawFn) -> list[tuple[str, str, np.ndarray]]:
    """A few tensors of any types and names, with values that repeat and values that do not."""
    named = []
    for number in range(draw(st.integers(1, 5))):
        stored = draw(st.sampled_from(TYPES))
        element = DENSE_TYPES[stored].numpy
        role = draw(st.sampled_from(["weight", "bias", ""]))
        shape = draw(st.sampled_from([(), (1,), (7,), (7,), (2, 5)]))
        size = element.itemsize * int(np.prod(shape))
        raw = draw(arrays(np.uint8, size, elements=st.integers(0, 255)))
        if stored == "bool":
            raw &= 1
        if draw(st.booleans()):
            raw[:] = np.tile(raw[: element.itemsize], size // element.itemsize)
        named.append((f"t{number}.{role}", stored, raw.view(element).reshape(shape)))
    return named


@settings(max_examples=60, deadline=None)
@given(sections())
def test_any_section_to_the_bit(plain_dense: Plain, section: Any) -> None:
    check(section, plain_dense)


@pytest.mark.parametrize("empty", [0.0, 0.5, 1.0])
def test_batch_norm_as_the_spec_says(empty: float, plain_dense: Plain) -> None:
    check(batch_norms([16, 16, 32], empty=empty), plain_dense)


@pytest.mark.parametrize("stored", TYPES)
def test_extreme_values(stored: str, plain_dense: Plain) -> None:
    element = DENSE_TYPES[stored].numpy
    width = 8 * element.itemsize
    bits = [0, 1, 2**width - 1, 2 ** (width - 1), 2 ** (width - 1) - 1, 2]
    if stored == "bool":
        bits = [0, 1, 1, 0]
    values = np.array(bits, dtype=f"<u{element.itemsize}").view(element)
    check([("x", stored, values)], plain_dense)


def test_blocks_join_seamlessly() -> None:
    """Tensors longer than a block keep their neighbors and the element before."""
    rng = np.random.default_rng(1)
    first = np.where(rng.random(10_000) < 0.3, 1, rng.normal(1, 0.1, 10_000)).astype("<f4")
    second = np.where(first == 1, 0, rng.normal(0, 1, 10_000)).astype("<f4")
    payload = check([("a.weight", "float32", first), ("a.bias", "float32", second)])
    literals = 2 * np.count_nonzero(first != 1)
    assert len(payload) < literals * 29 / 8 + 10_000 * 0.95 / 8


def test_many_kinds_share_models(plain_dense: Plain) -> None:
    rng = np.random.default_rng(2)
    named = [
        (f"t.{n}", stored, rng.integers(0, 2, 3).astype(DENSE_TYPES[stored].numpy))
        for n in range(25)
        for stored in ("float32", "int16")
    ]
    check(named, plain_dense)


def test_smaller_than_deflate_by_a_seventh() -> None:
    """Deflate sees neither where empty channels are nor that exponents predict nothing else."""
    named = batch_norms([64] * 5 + [128] * 5 + [256] * 5 + [512] * 5, empty=0.45)
    flat = np.concatenate([values.reshape(-1) for _, stored, values in named if stored != "int64"])
    planes = flat.view(np.uint8).reshape(-1, 4).T.tobytes()
    assert len(check(named)) < 6 / 7 * len(deflate(planes))


def test_within_a_hundredth_of_the_noise() -> None:
    """23 mantissa bits of each value are noise; exponents and signs cost 2 to 4 bits more."""
    rng = np.random.default_rng(3)
    values = (1 + rng.random(20_000)).astype("<f4")  # exponent 0: nothing but mantissa
    assert len(check([("weight", "float32", values)])) <= 20_000 * 23 / 8 * 1.01


@pytest.mark.parametrize(
    ("value", "most"), [(0.0, 8), (1.0, 24), (0.1, 24)], ids=["zeros", "ones", "tenths"]
)
def test_constants_cost_almost_nothing(value: float, most: int) -> None:
    named = [(f"{n}.running_var", "float32", np.full(512, value, "<f4")) for n in range(20)]
    assert len(check(named)) <= most


def test_zeros_alone_are_an_empty_section(save: Callable[..., bytes]) -> None:
    ticket = Ticket(seed=0, tensors=[DenseTensor("n", np.zeros(4, np.int64), "int64", "int64")])
    file = save(ticket)
    info = Ticket.open(file).info()
    assert info["dense_bytes"] == 0
    assert info["tensors"][0]["coder"] == "adaptive"
    np.testing.assert_array_equal(Ticket.open(file).dense("n").values, np.zeros(4))


def test_low_bits_that_are_zero_are_left_out() -> None:
    """float32 values that came from bfloat16 cost what bfloat16 ones do."""
    rng = np.random.default_rng(4)
    wide = rng.standard_normal(4000).astype("<f4").view("<u4") & np.uint32(0xFFFF0000)
    narrow = (wide >> 16).astype("<u2")
    as_float32 = check([("weight", "float32", wide.view("<f4"))])
    as_bfloat16 = check([("weight", "bfloat16", narrow)])
    assert as_float32[0] == 16
    assert abs(len(as_float32) - len(as_bfloat16)) <= 1


def test_the_smallest_encoding_is_taken(save: Callable[..., bytes]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 4000).astype(np.uint8)
    repeats = np.tile(noise, 5)
    ones = np.ones(1000, np.float32)
    for name, values, dtype in [
        ("raw", noise, "uint8"),
        ("deflate", repeats, "uint8"),
        ("adaptive", ones, "float32"),
    ]:
        tensor = DenseTensor("x", values, dtype, dtype)
        encoding, payload = encode_group([tensor])
        assert encoding == name
        entry = DenseEntry("x", values.shape, dtype, dtype)
        found = decode_group([entry], encoding, payload, "section")[0]
        assert found.values.tobytes() == values.tobytes()


def test_large_tensors_are_not_modeled() -> None:
    values = np.random.default_rng(0).standard_normal((1 << 18) + 1).astype(np.float32)
    assert encode_group([DenseTensor("fc.weight", values, "float32", "float32")])[0] == "planes"


def dense_tensors(named: Sequence[tuple[str, str, np.ndarray]]) -> list[DenseTensor]:
    return [DenseTensor(name, values, stored, stored) for name, stored, values in named]


@pytest.mark.parametrize(
    ("stored", "shape", "count"),
    [("bfloat16", (700, 700), 1), ("float32", (16, 4096), 4), ("float32", (8, 768), 40)],
)
def test_weights_of_a_shared_section_are_modeled_in_part(
    stored: str, shape: tuple[int, ...], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes seconds for a million of them, and is larger."""
    rng = np.random.default_rng(0)
    named: list[Any] = []
    for number in range(count):
        values = rng.normal(0, 0.02, shape).astype("<f4")
        if stored == "bfloat16":
            values = (values.view("<u4") >> 16).astype("<u2")
        named.append((f"l{number}.weight", stored, values))
    modeled: list[int] = []

    def counted(entries: Any, values: Sequence[np.ndarray]) -> bytes:
        modeled.append(sum(one.size for one in values))
        return encode_adaptive(entries, values)

    monkeypatch.setattr("pabzip.formats.dense_adaptive.encode_adaptive", counted)
    encoding, payload = encode_group(dense_tensors(named))
    assert encoding == "planes"
    assert len(payload) <= len(encoded(named))
    assert modeled
    assert sum(modeled) < sum(values.size for *_, values in named) / 4


@pytest.mark.parametrize("beside", [0, 2, 10])
def test_batch_norms_of_a_large_section_are_modeled(beside: int) -> None:
    """Whatever matrices share their section."""
    rng = np.random.default_rng(1)
    named = batch_norms([64, 256, 512, 1024, 2048], empty=0.5)
    for number in range(beside):
        values = rng.normal(0, 0.02, (128, 160)).astype("<f4")
        named.insert(5 * number, (f"fc{number}.weight", "float32", values))
    encoding, payload = encode_group(dense_tensors(named))
    assert encoding == "adaptive"
    assert payload == encoded(named)


# 12 and 15: streams that are not what a writer makes


BN = batch_norms([8], empty=0.25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[:3], "expected at least 4 bytes, found 3"),
        (lambda p: b"\x16" + p[1:], "expected at most 21 bits of float32 left out, found 22"),
        (lambda p: p + b"\x00", "without zeros at the end"),
        (lambda p: p + b"\x01" * 8, "expected a stream of at most"),
    ],
)
def test_fault_12_payloads_that_do_not_fit(change: Callable[[bytes], bytes], message: str) -> None:
    payload = change(encoded(BN))
    with pytest.raises(FormatError, match=f"dense section 0: .*{message}"):
        decode_adaptive(entries_of(BN), payload, "dense section 0")


def test_fault_12_integers_wider_than_their_type() -> None:
    """Two flags of 0, and then a head above 8, the bits of the type."""
    entry = DenseEntry("x", (1,), "uint8", "uint8")
    with pytest.raises(FormatError, match="expected integers of their type's width"):
        decode_adaptive([entry], bytes.fromhex("c1 00 00 01"), "section")


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=40))
def test_fault_15_any_bytes_decode_or_are_refused(payload: bytes) -> None:
    named = [
        *BN,
        ("a.mask", "bool", np.zeros(8, np.bool_)),
        ("a.index", "int16", np.zeros((2, 4), "<i2")),
    ]
    try:
        found = decode_adaptive(entries_of(named), payload, "section")
    except FormatError:
        return
    assert [values.size for values in found] == [values.size for _, _, values in named]


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_fault_15_a_changed_bit_gives_tensors_or_is_refused(place: int, bit: int) -> None:
    payload = bytearray(encoded(BN))
    payload[place % len(payload)] ^= 1 << bit
    entries = entries_of(BN)
    try:
        found = decode_group(entries, "adaptive", bytes(payload), "section")
    except FormatError:
        return
    assert [tensor.shape for tensor in found] == [entry.shape for entry in entries]


def test_values_of_an_adaptive_section_are_checked(parts: Any) -> None:
    named = [("x", "float32", np.array([1, np.nan], "<f4"))]
    payload = encoded(named)
    parts.fields["tensors"] = [["x", [2], "float32"]]
    parts.fields["dense"] = [[1, "adaptive", len(payload)]]
    parts.payloads = [payload]
    with pytest.raises(FormatError, match="'x': expected finite values, found 1"):
        Ticket.open(parts.sign()).dense("x")
    with pytest.raises(PackError, match="expected finite values"):
        Ticket(seed=0, tensors=[DenseTensor("x", named[0][2], "float32", "float32")])


def test_fault_10_an_adaptive_section_is_no_longer_than_its_elements(parts: Any) -> None:
    parts.fields["dense"][0][1:] = ["adaptive", 49]
    parts.payloads[-1] = b"\x01" * 49
    with pytest.raises(FormatError, match="expected at most 48 bytes, found 49"):
        Ticket.open(parts.sign())
