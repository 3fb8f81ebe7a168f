"""The ``planes`` encoding: exact, near the entropy, refused where damaged (10, 12, 15)."""

from __future__ import annotations

import heapq
import math
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pabzip.errors import FormatError, LimitError
from pabzip.formats import DENSE_TYPES, rans
from pabzip.formats.coder import run_tasks
from pabzip.formats.dense import DenseEntry, from_stored, to_stored
from pabzip.formats.dense_planes import decode_planes, encode_planes
from pabzip.formats.dense_sections import DenseGroup, check_groups, decode_group, encode_group
from pabzip.ticket import DenseTensor, Ticket

Named = list[tuple[str, str, np.ndarray]]


def entries_of(named: Named) -> list[DenseEntry]:
    return [DenseEntry(name, values.shape, dtype, dtype) for name, dtype, values in named]


def encoded(named: Named, **options: Any) -> bytes:
    return encode_planes([dtype for _, dtype, _ in named], [v for *_, v in named], **options)


def of_bytes(dtype: str, data: bytes) -> np.ndarray:
    """Elements from bytes, whatever they are."""
    element = DENSE_TYPES[dtype].numpy
    values = np.frombuffer(data * (1 + element.itemsize // len(data)), np.uint8)
    values = values % 2 if dtype == "bool" else values
    return values[: values.size // element.itemsize * element.itemsize].view(element)


def normal(count: int, dtype: str = "bfloat16", deviation: float = 0.02) -> np.ndarray:
    values = np.random.default_rng(1).standard_normal(count) * deviation
    if dtype != "bfloat16":
        return values.astype(DENSE_TYPES[dtype].numpy)
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2")


def trits(count: int, zeros: float) -> np.ndarray:
    """Five random ternary weights a byte."""
    share = (1 - zeros) / 2
    codes = np.random.default_rng(2).choice(3, p=[share, zeros, share], size=(count, 5))
    return (codes @ [1, 3, 9, 27, 81]).astype(np.uint8)


def entropy(values: np.ndarray) -> float:
    """Order-0 entropy, in bytes."""
    counts = np.unique(values, return_counts=True)[1]
    return float(-(counts * np.log2(counts / values.size)).sum() / 8)


# Exact


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_bit_comes_back_to_both_readers(
    data: st.DataObject, plain_planes: Callable[..., dict[str, bytes]]
) -> None:
    named: Named = []
    for number in range(data.draw(st.integers(1, 4))):
        dtype = data.draw(st.sampled_from(list(DENSE_TYPES)))
        held = data.draw(st.binary(min_size=1, max_size=200)) * data.draw(st.sampled_from([1, 60]))
        named.append((f"t{number}", dtype, of_bytes(dtype, held)))
    payload = encoded(named)
    found = decode_planes(entries_of(named), memoryview(payload), "section")
    plain = plain_planes([[n, list(v.shape), dtype] for n, dtype, v in named], payload)
    for (name, dtype, values), array in zip(named, found, strict=True):
        assert array.dtype == DENSE_TYPES[dtype].numpy
        assert array.tobytes() == values.tobytes() == plain[name]


@pytest.mark.parametrize("dtype", DENSE_TYPES)
def test_chunks_and_threads(dtype: str) -> None:
    """A million elements and a few: two chunks, of which each thread takes one."""
    count = (1 << 20) + 3
    rng = np.random.default_rng(3)
    data = np.minimum(rng.integers(0, 256, (count, 8), np.uint8), rng.integers(0, 256, 8, np.uint8))
    values = of_bytes(dtype, data.tobytes())[:count]
    named = [("x", dtype, values)]
    payload = encoded(named, threads=2)
    assert payload == encoded(named, threads=1)
    for threads in (1, 3):
        found = decode_planes(entries_of(named), payload, "section", threads=threads)[0]
        assert found.tobytes() == values.tobytes()


def test_elements_that_lie_anywhere() -> None:
    """Such as those of a file in memory, whose header has an odd length."""
    data = b"x" + normal(3000, "float32").tobytes()
    values = np.frombuffer(data, "<f4", offset=1)
    assert not values.flags.aligned
    named = [("x", "float32", values)]
    found = decode_planes(entries_of(named), memoryview(b"y" + encoded(named))[1:], "section")
    assert found[0].tobytes() == values.tobytes()


def test_a_section_of_a_file(save: Callable[..., bytes]) -> None:
    values = normal(600_000).reshape(1000, 600)
    file = save(Ticket(seed=0, tensors=[DenseTensor("emb.weight", values, "bfloat16", "bfloat16")]))
    with Ticket.open(file) as ticket:
        ticket.verify()
        assert ticket.info()["tensors"][0]["coder"] == "planes"
        found = ticket.dense("emb.weight").values
        assert found.shape == values.shape
        assert found.tobytes() == values.tobytes()
        found[:] = 0  # of its own: the next one is whole again
        assert ticket.dense("emb.weight").values.tobytes() == values.tobytes()


@pytest.mark.parametrize("threads", [1, 2, None])
def test_the_number_of_threads_reaches_the_decoder(
    threads: int | None, save: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = normal(600_000).reshape(1000, 600)
    file = save(Ticket(seed=0, tensors=[DenseTensor("emb.weight", values, "bfloat16", "bfloat16")]))
    found: list[int | None] = []

    def run(tasks: Any, threads: int | None = None) -> None:
        found.append(threads)
        run_tasks(tasks, threads)

    monkeypatch.setattr("pabzip.formats.dense_planes.run_tasks", run)
    with Ticket.open(file) as ticket:
        for read in (ticket.exact, ticket.plain, ticket.weight, ticket.tensor):
            read("emb.weight", threads=threads)  # type: ignore[operator]
        ticket.arrays(threads=threads)
        ticket.verify(threads=threads)
    assert found == 6 * [threads]


# Small


@pytest.mark.parametrize("deviation", [1e-3, 0.02, 1.0])
def test_normal_bfloat16_takes_two_thirds(deviation: float) -> None:
    values = normal(1 << 20, deviation=deviation)
    assert len(encoded([("x", "bfloat16", values)])) <= 0.66 * values.nbytes


@pytest.mark.parametrize(
    ("values", "above"),
    [
        (trits(1 << 20, zeros=0.42), 0.001),
        (trits(1 << 20, zeros=0.9), 0.003),
        (normal(1 << 20).view(np.uint8)[1::2] % 128, 0.001),  # nearly the exponents
        (np.random.default_rng(4).choice(3, p=[0.05, 0.9, 0.05], size=1 << 20), 0.001),
    ],
)
def test_bytes_take_their_entropy(values: np.ndarray, above: float) -> None:
    payload = encoded([("x", "uint8", values.astype(np.uint8))])
    assert entropy(values) <= len(payload) <= (1 + above) * entropy(values) + 1


def test_planes_that_do_not_pay_are_raw_or_one_byte() -> None:
    noise = np.random.default_rng(5).integers(0, 256, 1 << 16).astype("<i4") << 8
    payload = encoded([("x", "int32", noise)])  # folded: 2v, whose lowest byte is 0
    assert payload[:3] == b"\x14\x01\x00"
    assert len(payload) < len(noise) * 9 / 8 + 400
    assert encoded([("x", "uint8", np.full(1 << 16, 7, np.uint8))]) == b"\x14\x01\x07"
    equal = encoded([("x", "uint8", np.full(3 << 16, 7, np.uint8))])
    assert equal == b"\x10" + b"\x01\x07" * 3  # smaller chunks, since it expands so much


def test_small_signed_integers_have_empty_upper_planes() -> None:
    values = np.random.default_rng(6).integers(-100, 100, 1 << 17)
    assert len(encoded([("x", "int64", values)])) < 1.01 * entropy(values)


# The table


def best_frequencies(counts: np.ndarray) -> np.ndarray:
    """Of the least cost: one at a time, each where it saves most."""
    found = (counts > 0).astype(np.int64)
    waiting = [(-float(counts[at]), at) for at in np.flatnonzero(counts)]
    heapq.heapify(waiting)
    for _ in range(int(2**15 - found.sum())):
        at = waiting[0][1]
        found[at] += 1
        heapq.heapreplace(waiting, (-counts[at] * math.log2((found[at] + 1) / found[at]), at))
    return found


def many_counts() -> Iterator[np.ndarray]:
    """Counts of all kinds: even, steep, with rare bytes, with few."""
    rng = np.random.default_rng(9)
    for used in (2, 3, 17, 128, 256):
        for steep in (0.0, 0.1, 1.0, 6.0):
            counts = np.zeros(256, np.int64)
            places = rng.permutation(256)[:used]
            counts[places] = 1 + rng.integers(1, 2**31) * np.exp(-steep * rng.random(used) * 4)
            yield counts
    for few in ([1, 1], [1, 1, 1, 19658], [2**31, *[1] * 255], [5, *[2**20] * 200]):
        yield np.array(few + [0] * (256 - len(few)), np.int64)


def test_frequencies_cost_the_least() -> None:
    for counts in many_counts():
        found = np.empty(256, np.int64)
        rans.normalize(counts, found)
        assert found.sum() == 1 << 15
        used = counts > 0
        np.testing.assert_array_equal(found > 0, used)
        cost, best = (
            float(-(counts[used] * np.log2(frequencies[used] / 2**15)).sum() / 8)
            for frequencies in (found, best_frequencies(counts))
        )
        assert cost <= best * 1.00001 + 1
        assert abs(rans.cost(counts, found) - cost) <= counts.sum() / 8000 + 2
        table = rans.write_table(found)
        again, size = rans.read_table(memoryview(table + b"more"), "place")
        assert size == len(table)
        np.testing.assert_array_equal(again, found)


def test_equal_counts_are_cut_alike_everywhere() -> None:
    """What is left over goes to the lowest bytes first."""
    held, found = np.zeros((2, 256), np.int64)
    held[[5, 6, 9]] = 7
    rans.normalize(held, found)
    assert found[[5, 6, 9]].tolist() == [10923, 10923, 10922]
    # 5, 1, 2 zeros: 10923 = 256 * 42 + 43 + 128, twice; then 2 zeros and 10922.
    assert rans.write_table(found).hex(" ") == "00 04 aa 2b aa 2b 00 01 aa 2a"


# The choice


def large(values: np.ndarray, dtype: str) -> str:
    encoding, payload = encode_group([DenseTensor("x", values, dtype, dtype)])
    entry = DenseEntry("x", values.shape, dtype, dtype)
    found = decode_group([entry], encoding, payload, "section")[0]
    assert found.values.tobytes() == values.tobytes()
    return encoding


def test_what_large_tensors_take() -> None:
    count = 1 << 20
    assert large(normal(count), "bfloat16") == "planes"
    assert large(trits(count + 1, 0.42), "uint8") == "planes"
    noise = np.random.default_rng(7).integers(0, 256, count + 1).astype(np.uint8)
    assert large(noise, "uint8") == "raw"
    assert large(np.tile(noise[:3000], 400), "uint8") == "deflate"
    assert large(np.arange(count, dtype="<i4"), "int32") == "deflate"


def test_deflate_is_not_run_where_it_cannot_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes seconds for a few million random weights, and more of their bytes."""

    def refuse(data: bytes) -> bytes:
        raise AssertionError(f"deflate ran over {len(data)} bytes")

    monkeypatch.setattr("pabzip.formats.dense_sections.deflate", refuse)
    assert large(normal(1 << 20), "bfloat16") == "planes"
    assert large(trits(1 << 18, 0.42), "uint8") == "planes"  # and no adaptive coder either
    assert large(normal(1 << 19, "float32"), "float32") == "planes"


def test_large_sections_of_equal_bytes_load_without_a_limit(save: Callable[..., bytes]) -> None:
    """Their expansion stays below what a reader allows any file."""
    zeros = np.zeros(300 << 20, np.uint8)  # above the 256 MiB that are always allowed
    file = save(Ticket(seed=0, tensors=[DenseTensor("x", zeros, "uint8", "uint8")]))
    assert len(file) < 16384
    with Ticket.open(file) as ticket:
        assert not ticket.dense("x").values.any()


# Memory


def peak(work: Callable[[], Any]) -> int:
    work()  # what is compiled and kept is none of it
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_tensor() -> None:
    """A 1.3 GB embedding must not take three times its size; here one of 24 MB."""
    values = normal(12 << 20)
    named = [("x", "bfloat16", values)]
    payload = encoded(named)
    some = 20 << 20  # chunks under way, of two threads
    assert peak(lambda: encoded(named, threads=2)) < len(payload) + some
    entries = entries_of(named)
    decoded = peak(lambda: decode_planes(entries, payload, "section", threads=2))
    assert decoded < values.nbytes + some
    tensor = DenseTensor("a.running_var", values & 0x7FFF, "bfloat16", "bfloat16")
    assert peak(tensor.check_values) < 4 << 20
    wide = (values.astype("<u4") << 16).view("<f4")
    assert peak(DenseTensor("x", wide, "float32", "bfloat16").check_values) < 16 << 20
    narrow = peak(lambda: to_stored(wide, "float32", "bfloat16"))
    assert narrow < values.nbytes + (8 << 20)
    widened = peak(lambda: from_stored(values, "float32", "bfloat16"))
    assert widened < wide.nbytes + (8 << 20)


# What is refused

SMALL: Named = [
    ("a", "uint8", np.arange(600, dtype=np.uint8) % 7),
    ("b", "int16", np.arange(-200, 200, dtype="<i2")),
]
STREAM = encoded(SMALL[:1])
"""c, kind 2, 4 bytes of length, a table of 14, states of 32, words."""


def test_the_small_stream_is_what_the_tests_say() -> None:
    assert STREAM[:2] == b"\x14\x02"
    assert int.from_bytes(STREAM[2:6], "little") == len(STREAM) - 6
    assert rans.read_table(memoryview(STREAM[6:]), "place")[1] == 14


def sized(stream: bytes) -> bytes:
    """A block whose length is right."""
    return stream[:2] + (len(stream) - 6).to_bytes(4, "little") + stream[6:]


def longer(stream: bytes, extra: bytes) -> bytes:
    return sized(stream + extra)


def shorter(stream: bytes, less: int) -> bytes:
    return sized(stream[:-less])


def replaced(stream: bytes, at: int, data: bytes) -> bytes:
    return stream[:at] + data + stream[at + len(data) :]


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "expected a first byte from 16 to 20, found none"),
        (replaced(STREAM, 0, b"\x0f"), "expected a first byte from 16 to 20, found 15"),
        (replaced(STREAM, 0, b"\x15"), "expected a first byte from 16 to 20, found 21"),
        (replaced(STREAM, 1, b"\x03"), "expected a block of kind 0, 1 or 2, found 3"),
        (STREAM[:1], "expected a block of 600 bytes, found 0 left"),
        (b"\x14\x00" + bytes(599), "expected a block of 600 bytes, found 599 left"),
        (b"\x14\x01", "expected a block of 1 bytes, found 0 left"),
        (STREAM[:-1], "expected a block of .* left"),
        (replaced(STREAM, 2, b"\xff\xff\xff\xff"), "expected a block of 4294967295 bytes"),
        (STREAM + b"\x00", "expected the blocks to end the section, found 1 bytes more"),
        (b"\x14\x02\0\0\0\0", "expected a table of frequencies that add up to 32768"),
        (b"\x14\x02\2\0\0\0\xff\xff", "expected a table of frequencies that add up to 32768"),
        (b"\x14\x02\4\0\0\0\0\xff\x01\x01", "expected a table of frequencies"),
        (replaced(STREAM, 6, b"\xff"), "expected a table of frequencies"),
        (longer(STREAM, b"x"), "expected 32 bytes of states and whole words of 4"),
        (longer(STREAM, bytes(4)), r"expected 600 bytes of \d+ words, needs \d+"),
        (shorter(STREAM, 4), r"expected 600 bytes of \d+ words, needs more"),
        (shorter(STREAM, len(STREAM) - 51), "expected 32 bytes of states .* found 31 bytes"),
        (replaced(STREAM, 20, bytes(8)), r"expected states from 2\^31 to 2\^63 - 1"),
        (replaced(STREAM, 27, b"\x80"), r"expected states from 2\^31 to 2\^63 - 1"),
    ],
)
def test_fault_12_payloads_that_do_not_fit(payload: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=f"dense section 3: {message}"):
        decode_planes(entries_of(SMALL[:1]), payload, "dense section 3")


def test_fault_12_states_left_over() -> None:
    """Another first state gives other last ones; hardly ever it is that of other bytes."""
    other = 0
    for bit in range(8 * 20, 8 * 52):
        changed = bytearray(STREAM)
        changed[bit >> 3] ^= 1 << (bit & 7)
        try:
            found = decode_planes(entries_of(SMALL[:1]), bytes(changed), "section")[0]
        except FormatError:
            continue
        other += 1
        assert (found != SMALL[0][2]).any()
    assert other <= 2


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7), cut=st.booleans())
def test_fault_15_a_changed_bit_gives_tensors_or_is_refused(
    place: int, bit: int, cut: bool
) -> None:
    payload = bytearray(encoded(SMALL))
    payload[place % len(payload)] ^= 1 << bit
    held = bytes(payload[: place % len(payload)]) if cut else bytes(payload)
    try:
        found = decode_planes(entries_of(SMALL), held, "section")
    except FormatError:
        return
    assert [array.size for array in found] == [600, 400]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(16, 20))
def test_fault_15_any_bytes_decode_or_are_refused(data: bytes, bits: int) -> None:
    for payload in (data, bytes([bits, 2, len(data), 0, 0, 0]) + data):
        try:
            found = decode_planes(entries_of(SMALL[:1]), payload, "section")
        except FormatError:
            continue
        assert found[0].shape == (600,)


def test_fault_10_a_small_payload_cannot_declare_much() -> None:
    entry = DenseEntry("x", (1 << 40,), "uint8", "uint8")
    with pytest.raises(FormatError, match="at most 524288 times 1000 bytes, found 1099511627776"):
        check_groups([entry], [DenseGroup(1, "planes", 1000)])
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="expected a block of 1048576 bytes, found 0 left"):
            decode_planes([entry], b"\x14" + b"\x01\x00" * 500, "section")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20  # nothing for the elements
    finally:
        tracemalloc.stop()


def test_fault_10_the_limit_of_the_whole_file_holds(parts: Any) -> None:
    payload = b"\x14" + b"\x01\x00" * 2048
    parts.fields["tensors"] = [["x", [2048 << 20], "uint8"]]
    parts.fields["dense"] = [[1, "planes", len(payload)]]
    parts.payloads = [payload]
    with pytest.raises(LimitError, match="found 2147483648 declared"):
        Ticket.open(parts.sign())


@pytest.mark.parametrize(
    ("name", "dtype", "value", "message"),
    [
        ("x", "bfloat16", 0x7F80, "'x': expected finite values, found 1"),
        ("x", "bool", 2, "'x': expected booleans of 0 or 1"),
        ("running_var", "float64", -1.0, "variances of at least 0, found 1"),
    ],
)
def test_fault_14_values_in_a_file(
    name: str, dtype: str, value: float, message: str, parts: Any
) -> None:
    kind = np.uint8 if dtype == "bool" else DENSE_TYPES[dtype].numpy
    values = np.array([value, *[1] * 299], kind)
    payload = encode_planes([dtype], [values])
    parts.fields["tensors"] = [[name, [300], dtype]]
    parts.fields["dense"] = [[1, "planes", len(payload)]]
    parts.payloads = [payload]
    with pytest.raises(FormatError, match=message):
        Ticket.open(parts.sign()).dense(name)


def test_older_readers_say_that_a_newer_pabzip_may_know_the_name(parts: Any) -> None:
    parts.fields["dense"][0][1] = "plains"
    with pytest.raises(FormatError, match=r"\(raw, deflate, adaptive, planes\), found 'plains'"):
        Ticket.open(parts.sign())


def test_the_sample_is_no_smaller_than_what_deflate_sees() -> None:
    """What repeats within deflate's window shows in every sample."""
    noise = np.random.default_rng(8).integers(0, 256, 30_000).astype(np.uint8)
    sample = np.tile(noise, 3)[: 1 << 16].tobytes()
    assert len(zlib.compress(sample, 1)) < 0.6 * len(sample)
    assert large(np.tile(noise, 40), "uint8") == "deflate"
