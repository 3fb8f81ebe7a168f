"""The parts of the coder: levels, buckets, probabilities, the range coder, what is chosen."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pabzip.errors import FormatError
from pabzip.formats.context import Context
from pabzip.formats.context import model as buckets
from pabzip.formats.context import model as probabilities
from pabzip.formats.context import side_stream as contexts
from pabzip.formats.context.geometry import level
from pabzip.formats.context.range_coder import (
    FLUSH_BYTES,
    decode_bit,
    encode_bit,
    finish,
    start_decoding,
)
from pabzip.formats.context.side_stream import SideStream, fold, unfold
from pabzip.formats.seeded import SeededTensor
from pabzip.seeds import InitSpec, magnitudes


@given(magnitude=st.integers(1, 2**32 - 1))
def test_levels_are_those_of_the_specification(plain: ModuleType, magnitude: int) -> None:
    assert level(np.uint32(magnitude)) == plain.level(magnitude)
    octave = magnitude.bit_length() - 1
    cut = magnitude >> max(0, octave - 8) << max(0, octave - 8)
    assert 2 ** plain.level(magnitude) <= cut**256 < 2 ** (plain.level(magnitude) + 1)


def test_buckets_and_probabilities_are_those_of_the_specification(plain: ModuleType) -> None:
    assert buckets.EDGES.tolist() == plain.EDGES
    assert probabilities.SCALE.tolist() == plain.SCALE
    assert contexts.COUNT == 1470
    for score in range(-buckets.REACH - 1, buckets.REACH + 1):
        found = buckets.BUCKET_OF[score + buckets.REACH + 1]
        assert found == sum(edge <= score for edge in plain.EDGES)


coins = st.lists(st.tuples(st.integers(1, 65535), st.booleans()), max_size=300)


@settings(max_examples=200, deadline=None)
@given(coins=coins, likely=st.booleans())
def test_bits_come_back(plain: ModuleType, coins: Any, likely: bool) -> None:
    """Any bits of any probabilities, also where every bit is likely or every one is not."""
    bits = [int((chance > 32768) == likely) if likely else int(bit) for chance, bit in coins]
    out = np.zeros(2 * len(coins) + FLUSH_BYTES, dtype=np.uint8)
    low, span, position = np.uint64(0), np.uint64(0xFFFFFFFF), 0
    for (chance, _), bit in zip(coins, bits, strict=True):
        low, span, position = encode_bit(low, span, position, out, bit, np.uint32(chance))
    data = out[: finish(low, span, position, out)]
    assert not len(data) or data[-1] != 0
    code, span, position = start_decoding(data, 0, len(data))
    plainly = plain.Bits(data.tobytes())
    for (chance, _), bit in zip(coins, bits, strict=True):
        code, span, position, found = decode_bit(
            code, span, position, data, len(data), np.uint32(chance)
        )
        assert found == plainly.bit(chance) == bit
    assert position == plainly.taken
    plainly.end()


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.integers(-(2**24) + 1, 2**24 - 1) | st.integers(-40, 40), max_size=40),
    numbers=st.lists(st.integers(0, 2**48 - 2), max_size=10),
    flags=st.lists(st.booleans(), max_size=40),
)
def test_values_come_back(
    plain: ModuleType, values: list[int], numbers: list[int], flags: list[bool]
) -> None:
    stream = SideStream(None)
    stream.residuals(np.array(values, np.int32), contexts.ROW_FACTORS)
    for number in numbers:
        stream.number(number, contexts.LAYOUT)
    for flag in flags:
        stream.bit(int(flag), contexts.ROW)
    stream.plain(1234, 11)
    data = stream.getvalue()

    reader = SideStream(data)
    count = len(values)
    none = np.zeros(count, np.int32)
    assert reader.residuals(none, contexts.ROW_FACTORS).tolist() == values
    assert [reader.number(0, contexts.LAYOUT) for _ in numbers] == numbers
    assert [bool(reader.bit(0, contexts.ROW)) for _ in flags] == flags
    assert reader.plain(0, 11) == 1234
    reader.close("side stream")

    side = plain.Side(data)
    kind = side.plain(4)
    assert [side.residual(120, kind) for _ in values] == values
    assert [side.number(22) for _ in numbers] == numbers
    assert [bool(side.under(10)) for _ in flags] == flags
    assert side.plain(11) == 1234
    side.bits.end()


def test_a_side_stream_must_end() -> None:
    stream = SideStream(None)
    stream.plain(5, 3)
    reader = SideStream(stream.getvalue() + b"\1" * 5)
    reader.plain(0, 3)
    with pytest.raises(FormatError, match="without zeros at the end"):
        reader.close("side stream")


def test_used_bits_count_what_was_passed() -> None:
    stream = SideStream(None)
    stream.plain(0, 40)
    assert stream.used_bits == pytest.approx(40, abs=0.1)
    reader = SideStream(stream.getvalue())
    reader.plain(0, 40)
    assert reader.used_bits == pytest.approx(40, abs=0.1)


@given(value=st.integers(-(2**50), 2**50))
def test_signs_fold(value: int) -> None:
    assert fold(value) >= 0
    assert unfold(fold(value)) == value


def layouts_of(written: Any, seed: int) -> list[tuple[int, int, int, int]]:
    decoder: Any = Context().decoder(seed, written.entries, written.side)
    layouts = [decoder.descriptions[one.name].active.layout for one in written.tensors]
    return [(one.groups, one.rows, one.columns, one.positions) for one in layouts]


def test_groups_are_found(make: Any, encode: Any, seed: int) -> None:
    """8 groups of 8 rows see 8 channels each; in each group other channels are empty."""
    first, second = make("first", (64, 3, 3, 3)), make("second", (64, 8, 3, 3), stream=1)
    empty = np.random.default_rng(3).random((8, 1, 8, 1, 1)) < 0.5
    view = second.codes.reshape(8, 8, 8, 3, 3)
    view[:] *= ~empty
    assert layouts_of(encode([first, second]), seed)[1] == (8, 64, 8, 9)


def test_a_flatten_is_found(make: Any, encode: Any, seed: int) -> None:
    """16 channels of 25 places: half of the channels are empty."""
    first, second = make("first", (16, 3, 3, 3)), make("second", (40, 400), stream=1)
    second.codes.reshape(40, 16, 25)[:, ::2] = 0
    second.codes.reshape(40, 16, 25)[:, 1::2, ::3] = 1
    assert layouts_of(encode([first, second]), seed)[1] == (1, 40, 16, 25)


def test_columns_follow_the_rows_before(make: Any, encode: Any) -> None:
    """Equal factors of rows and of the next tensor's columns are told once."""
    rng = np.random.default_rng(5)
    factors = rng.normal(0, 1, 200)

    def tensor(name: str, stream: int, by: np.ndarray, axis: int) -> SeededTensor:
        spec = InitSpec("normal", 1.0, stream)
        scores = np.log2(magnitudes(3, spec, 0, 200 * 200)).reshape(200, 200)
        scores = scores + (by[:, None] if axis == 0 else by[None, :])
        mask = scores > np.quantile(scores, 0.7)
        return SeededTensor(name, spec, mask.astype(np.int8))

    def size(columns: np.ndarray) -> int:
        tensors = [tensor("a", 0, factors, 0), tensor("b", 1, columns, 1)]
        payloads, side = Context().encode(3, tensors)
        return sum(map(len, payloads)) + len(side)

    assert size(factors) < 0.9 * size(rng.permutation(factors))
