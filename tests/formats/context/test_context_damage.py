"""FAULTS 12 and 15: damaged and hostile streams with right checksums. Refused, never a crash."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pabzip.errors import FormatError, LimitError
from pabzip.formats.coder import run_tasks
from pabzip.formats.context import Context
from pabzip.formats.context import side_stream as contexts
from pabzip.formats.context.side_information import SideInformation
from pabzip.formats.context.side_stream import SideStream
from pabzip.formats.seeded import SeededEntry
from pabzip.seeds import InitSpec
from pabzip.ticket import Ticket

SPEC = InitSpec("normal", 0.125, 0)


@pytest.fixture(scope="module")
def file(make: Any, save: Callable[..., bytes], seed: int) -> bytes:
    """A small file with every mask mode, plain and coded signs, and empty rows."""
    tensors = [
        make("even", (5, 4), stream=0),
        make("threshold", (6, 5, 3), stream=1, structure="magnitude", signs="few flips", keep=0.4),
        make("factors", (24, 18), stream=2, structure="empty", keep=0.5),
        make("follows", (6, 24), stream=3, structure="synflow", keep=0.5),
        make("all", (3,), stream=4, structure="all active", signs="kept"),
    ]
    return save(Ticket(seed=seed, tensors=tensors), coder="context")


def survivors(ticket: Ticket) -> dict[str, int]:
    return {name: int(np.count_nonzero(ticket.codes(name))) for name in ticket.names}


def check_refused_or_declared(parts: Any, declared: dict[str, int]) -> bool:
    """A file reads as what its header declares, or is refused; return whether it was refused."""
    try:
        with Ticket.open(parts.sign()) as ticket:
            ticket.arrays()
            assert survivors(ticket) == declared
    except FormatError:
        return True
    return False


def test_the_file_reads(file: bytes) -> None:
    ticket = Ticket.open(file)
    ticket.verify()
    assert sum(survivors(ticket).values()) > 100


def test_fault_15_every_bit_flip(file: bytes, take_apart: Callable[[bytes], Any]) -> None:
    declared = survivors(Ticket.open(file))
    refused = count = 0
    for section in range(len(take_apart(file).payloads)):
        for bit in range(8 * len(take_apart(file).payloads[section])):
            parts = take_apart(file)
            changed = bytearray(parts.payloads[section])
            changed[bit >> 3] ^= 1 << (bit & 7)
            parts.payloads[section] = bytes(changed)
            refused += check_refused_or_declared(parts, declared)
            count += 1
    assert 0 < refused < count  # a flipped sign bit is another ticket, for the digest to refuse


def test_fault_12_truncated_and_extended_sections(
    file: bytes, take_apart: Callable[[bytes], Any]
) -> None:
    for section in range(len(take_apart(file).payloads)):
        length = len(take_apart(file).payloads[section])
        others = [take_apart(file).payloads[section][:end] for end in range(length)]
        for extra in (b"\0", b"\1" * 5, b"\xff" * 9, bytes(1000)):
            others.append(take_apart(file).payloads[section] + extra)
        for payload in others:
            parts = take_apart(file)
            parts.payloads[section] = payload
            if section:
                parts.fields["tensors"][section - 1][7] = len(payload)
            elif payload:
                parts.fields["side"] = len(payload)
            else:
                del parts.fields["side"]
                parts.payloads.pop(0)
            with pytest.raises(FormatError):
                Ticket.open(parts.sign()).verify()


@pytest.mark.parametrize("change", [-1, 1, 2])
@pytest.mark.parametrize("row", range(5))
def test_fault_12_other_numbers_of_survivors(
    file: bytes, take_apart: Callable[[bytes], Any], row: int, change: int
) -> None:
    parts = take_apart(file)
    parts.fields["tensors"][row][6] += change
    with pytest.raises(FormatError):
        Ticket.open(parts.sign()).arrays()


@pytest.mark.parametrize("key", ["seed", "scale", "stream", "distribution"])
def test_fault_15_other_generators(
    file: bytes, take_apart: Callable[[bytes], Any], key: str
) -> None:
    """What the mask is predicted from changes: whatever decodes, the digest refuses it."""
    parts = take_apart(file)
    row = parts.fields["tensors"][2]
    if key == "seed":
        parts.fields["seed"] = "12"
    else:
        place, value = {"scale": (3, 1 << 23), "stream": (4, 99), "distribution": (2, "uniform")}[
            key
        ]
        row[place] = value if key != "scale" else 0x3F800000
    with pytest.raises(FormatError):
        Ticket.open(parts.sign()).verify()


SHAPES = [(5,), (4, 6), (6, 4, 3), (4, 6), (3, 12)]


@settings(max_examples=400, deadline=None)
@given(side=st.binary(max_size=80), payload=st.binary(max_size=40), kept=st.integers(0, 72))
def test_fault_12_both_decoders_refuse_the_same_bytes(
    plain: ModuleType, seed: int, side: bytes, payload: bytes, kept: int
) -> None:
    """Any bytes as side stream and payload: the same codes from both decoders, or from neither."""
    shapes = SHAPES[: 1 + kept % len(SHAPES)]
    entries = [
        SeededEntry(str(place), shape, SPEC, min(kept, int(np.prod(shape))))
        for place, shape in enumerate(shapes)
    ]
    try:
        descriptions = plain.read_side(side, [(entry.shape, entry.survivors) for entry in entries])
    except plain.RefusedError:
        with pytest.raises(FormatError, match="side stream"):
            Context().decoder(seed, entries, side)
        return
    decoder = Context().decoder(seed, entries, side)
    for entry, one in zip(entries, descriptions, strict=True):
        length = sum(coded for _, coded, _ in one.chunks)
        length += sum((found + 7) // 8 for *_, found in one.chunks) if one.signs == 1 else 0
        section = (payload + bytes(length))[:length]
        out = np.zeros(entry.count, np.int8)
        try:
            expected = plain.decode(one, section, seed, entry.spec)
        except plain.RefusedError:
            with pytest.raises(FormatError, match="expected"):
                run_tasks(decoder.codes(entry, section, out), 1)
        else:
            run_tasks(decoder.codes(entry, section, out), 1)
            assert out.tolist() == expected


def written(write: Callable[[SideStream], Any]) -> bytes:
    """A side stream that holds what ``write`` passes."""
    stream = SideStream(None)
    write(stream)
    return stream.getvalue()


def refuse(shape: tuple[int, ...], kept: int, write: Callable[[SideStream], Any]) -> str:
    """Return the words with which a side stream of one tensor is refused."""
    entry = SeededEntry("w", shape, SPEC, kept)
    with pytest.raises(FormatError) as error:
        Context().decoder(0, [entry], written(write))
    return str(error.value)


def plain_and_active(stream: SideStream) -> None:
    for context in (contexts.PLAIN_LAYOUT, contexts.ALL_ROWS, contexts.ALL_COLUMNS):
        stream.bit(1, context)


def two(stream: SideStream, value: int, base: int) -> None:
    stream.bit(value >> 1, base)
    stream.bit(value & 1, base + 1 + (value >> 1))


@pytest.mark.parametrize(
    ("groups", "positions"), [(0, 1), (1, 0), (3, 1), (1, 5), (2**47, 1), (1, 2**48 - 2), (8, 12)]
)
def test_layouts_that_do_not_divide(groups: int, positions: int) -> None:
    def write(stream: SideStream) -> None:
        stream.bit(0, contexts.PLAIN_LAYOUT)
        stream.number(groups, contexts.LAYOUT)
        stream.number(positions, contexts.LAYOUT)

    assert "expected groups that divide 4 rows" in refuse((4, 6), 3, write)


def test_numbers_have_an_end() -> None:
    def write(stream: SideStream) -> None:
        for context in [contexts.PLAIN_LAYOUT, *range(contexts.LAYOUT, contexts.LAYOUT + 60)]:
            stream.bit(int(context != contexts.PLAIN_LAYOUT), context)

    assert "expected numbers below 2**48" in refuse((4, 6), 3, write)


@pytest.mark.parametrize("empty", ["rows", "columns"])
def test_active_rows_without_active_columns(empty: str) -> None:
    def write(stream: SideStream) -> None:
        stream.bit(1, contexts.PLAIN_LAYOUT)
        if empty == "columns":
            stream.bit(1, contexts.ALL_ROWS)
            stream.bit(0, contexts.ALL_COLUMNS)
            stream.bits(np.zeros(6, np.uint8), np.full(6, contexts.COLUMN))
        else:
            stream.bit(0, contexts.ALL_ROWS)
            stream.bits(np.zeros(4, np.uint8), np.full(4, contexts.ROW))
            stream.bit(1, contexts.ALL_COLUMNS)

    assert "active rows and columns in the same groups" in refuse((4, 6), 0, write)


def test_active_rows_of_one_group_and_columns_of_another() -> None:
    def write(stream: SideStream) -> None:
        stream.bit(0, contexts.PLAIN_LAYOUT)
        stream.number(2, contexts.LAYOUT)
        stream.number(3, contexts.LAYOUT)
        stream.bit(0, contexts.ALL_ROWS)
        stream.bits(np.array([1, 1, 0, 0], np.uint8), np.full(4, contexts.ROW))
        stream.bit(0, contexts.ALL_COLUMNS)
        flags = np.array([0, 0, 1, 1], np.uint8)
        stream.bits(flags, np.array([contexts.COLUMN + 4, contexts.COLUMN] * 2)[[1, 1, 1, 1]])

    assert "same groups" in refuse((4, 6), 6, write)


def test_survivors_without_active_weights() -> None:
    def write(stream: SideStream) -> None:
        stream.bit(1, contexts.PLAIN_LAYOUT)
        stream.bit(0, contexts.ALL_ROWS)
        stream.bits(np.zeros(4, np.uint8), np.full(4, contexts.ROW))
        stream.bit(0, contexts.ALL_COLUMNS)
        stream.bits(np.zeros(6, np.uint8), np.full(6, contexts.COLUMN))

    assert "expected 5 survivors, found no active weight" in refuse((4, 6), 5, write)


def test_sign_mode_three_and_chance_zero() -> None:
    def three(stream: SideStream) -> None:
        plain_and_active(stream)
        two(stream, 0, contexts.MODE)
        two(stream, 3, contexts.SIGNS)

    def zero(stream: SideStream) -> None:
        plain_and_active(stream)
        two(stream, 1, contexts.MODE)
        stream.plain(0, 16)

    assert "expected a sign mode of 0 to 2, found 3" in refuse((4, 6), 24, three)
    assert "expected a probability above 0" in refuse((4, 6), 3, zero)


@pytest.mark.parametrize(("first", "last"), [(31, 31), (3, 2), (0, 31)])
def test_buckets_out_of_range(first: int, last: int) -> None:
    def write(stream: SideStream) -> None:
        plain_and_active(stream)
        two(stream, 2, contexts.MODE)
        stream.number(0, contexts.MIDDLE)
        stream.plain(first, 5)
        stream.plain(last, 5)

    assert "expected uncertain buckets in 0 to 30" in refuse((4, 6), 3, write)


@pytest.mark.parametrize("size", [2**25 + 2, 2**40])
def test_offsets_out_of_range(size: int) -> None:
    def write(stream: SideStream) -> None:
        plain_and_active(stream)
        two(stream, 2, contexts.MODE)
        stream.number(size, contexts.MIDDLE)

    assert "expected a factor of at most 2**24" in refuse((4, 6), 3, write)


@pytest.mark.parametrize("size", [2**24 + 1, 2**30])
def test_residuals_out_of_range(size: int) -> None:
    def write(stream: SideStream) -> None:
        plain_and_active(stream)
        two(stream, 3, contexts.MODE)
        stream.bit(0, contexts.UNIT)
        stream.number(0, contexts.MIDDLE)
        stream.plain(15, 4)
        base = contexts.ROW_FACTORS + 22 * 15
        stream.bits(np.array([1, 0, *[1] * 20], np.uint8), np.arange(base, base + 22))
        stream.number(size, contexts.ROW_FACTORS + 352)

    assert "expected residuals" in refuse((4, 6), 3, write)


@pytest.mark.parametrize("coded", [101, 2**31, 2**47, 2**48 - 2])
def test_fault_9_coded_bytes_beyond_the_weights(coded: int) -> None:
    """Sums of such numbers would overflow, and lead a decoder outside its payload."""

    def write(stream: SideStream) -> None:
        plain_and_active(stream)
        two(stream, 0, contexts.MODE)
        two(stream, 0, contexts.SIGNS)
        stream.number(coded, contexts.CODED_BYTES)

    assert f"size to be 0 to 100, found {coded}" in refuse((4, 6), 24, write)


@pytest.mark.parametrize("change", [-1, -(2**46), 2**46])
def test_fault_9_sizes_of_chunks_that_cancel(change: int) -> None:
    def write(stream: SideStream, base: int) -> None:
        plain_and_active(stream)
        two(stream, 0, contexts.MODE)
        two(stream, 0, contexts.SIGNS)
        stream.number(0, contexts.CODED_BYTES)
        sizes = [0, 0]
        sizes[base == contexts.SURVIVORS] = change
        folded = [2 * size if size >= 0 else -2 * size - 1 for size in sizes]
        stream.number(folded[0], contexts.BYTES_CHANGE)
        stream.number(folded[1], contexts.SURVIVORS)

    shape = (2, 65536)  # two chunks
    for base in (contexts.BYTES_CHANGE, contexts.SURVIVORS):
        words = refuse(shape, 0, lambda stream, base=base: write(stream, base))  # type: ignore[misc]
        assert "expected a chunk's size to be 0 to" in words


def test_many_groups_decode_fast_and_flat(seed: int) -> None:
    """A million groups of one weight are as cheap as one group of a million."""
    shape = (1 << 20, 1)

    def write(stream: SideStream) -> None:
        stream.bit(0, contexts.PLAIN_LAYOUT)
        stream.number(1 << 20, contexts.LAYOUT)
        stream.number(1, contexts.LAYOUT)
        stream.bit(1, contexts.ALL_ROWS)
        stream.bit(1, contexts.ALL_COLUMNS)
        two(stream, 0, contexts.MODE)
        two(stream, 0, contexts.SIGNS)
        stream.number(0, contexts.CODED_BYTES)
        for base in [contexts.BYTES_CHANGE] * 15 + [contexts.SURVIVORS] * 15:
            stream.number(0, base)

    side = written(write)
    entry = SeededEntry("w", shape, SPEC, 1 << 20)
    out = np.zeros(entry.count, np.int8)
    tracemalloc.start()
    for task in Context().decoder(seed, [entry], side).codes(entry, b"", out):
        task()
    assert tracemalloc.get_traced_memory()[1] < 100 * entry.count
    tracemalloc.stop()
    assert out.all()


def test_fault_10_a_tiny_file_that_declares_much(
    make: Any, save: Callable[..., bytes], take_apart: Callable[[bytes], Any]
) -> None:
    """Empty weights take no bytes, so a limit stands between a small file and the memory."""
    one = make("w", (2000, 2000), structure="all empty")
    file = save(Ticket(seed=0, tensors=[one]), coder="context")
    assert 4 * one.codes.size > 65536 * len(file)
    parts = take_apart(file)
    parts.fields["tensors"][0][1] = [10**6, 10**6]
    huge = parts.sign()
    tracemalloc.start()
    with pytest.raises(
        LimitError, match=f"at most {256 << 20} bytes .* from a file of {len(huge)}"
    ):
        Ticket.open(huge)
    for small in (file, huge):
        with pytest.raises(LimitError, match="expected at most 1000000 bytes"):
            Ticket.open(small, max_bytes=10**6)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    with Ticket.open(file) as ticket:  # 16 MB are allowed whatever the file's size
        assert not ticket.codes("w").any()


def test_a_payload_of_another_length(make: Any, encode: Any, seed: int) -> None:
    one = encode([make("w", (9, 9))])
    decoder = Context().decoder(seed, one.entries, one.side)
    out = np.zeros(81, np.int8)
    for payload in (one.payloads[0][:-1], one.payloads[0] + b"\1", b""):
        with pytest.raises(FormatError, match="bytes of chunks, found"):
            decoder.codes(one.entries[0], payload, out)


def test_lengths_beyond_any_encoders(make: Any) -> None:
    entry = SeededEntry("w", (4, 6), SPEC, 3)
    Context().check_length(entry, 64)
    with pytest.raises(FormatError, match="expected at most 64 bytes of codes for 24 weights"):
        Context().check_length(entry, 65)


def test_a_writer_is_held_to_the_same_rules(make: Any, encode: Any) -> None:
    """What a reader would refuse, a writer cannot write."""
    one = encode([make("w", (9, 9), keep=0.5)])
    decoder: Any = Context().decoder(0, one.entries, one.side)
    description = next(iter(decoder.descriptions.values()))
    description.coded_bytes = description.coded_bytes + 400
    with pytest.raises(FormatError, match="expected a chunk's size"):
        SideInformation().tensor((9, 9), int(description.survivors.sum()), description)
