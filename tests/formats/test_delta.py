"""Deltas in a file: a golden one, a second reader from SPEC.md alone, and every rule refused."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pabzip.errors import BaseFileError, FormatError, LimitError, PackError
from pabzip.formats import DENSE_TYPES, DeltaTensor
from pabzip.formats.delta_changes import Change
from pabzip.formats.dense import to_stored
from pabzip.formats.trits import pack_codes
from pabzip.packing.base import open_base
from pabzip.ticket import DenseTensor, Ticket, TiedTensor

EXPECTED = Path(__file__).parents[1] / "expected"


def numbers(count: int, most: int) -> np.ndarray:
    """Whole numbers from ``-most`` to ``most``, by arithmetic that no library can change."""
    mixed = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed % np.uint64(2 * most + 1)).astype(np.int64) - most


def floats(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Values of every size, with both zeros."""
    values = numbers(int(np.prod(shape)), 2000) / 1024.0 * 2.0 ** numbers(int(np.prod(shape)), 6)
    values[:2] = 0.0, -0.0
    if dtype == "float64":
        return values.reshape(shape)
    return to_stored(values.astype(np.float32), "float32", dtype).reshape(shape)


def base() -> dict[str, np.ndarray]:
    made = {f"steps.{dtype}": floats((5, 7), dtype) for dtype in DENSE_TYPES if "float" in dtype}
    made |= {f"rows.{dtype}": floats((5, 3, 4), dtype) for dtype in ("float32", "bfloat16")}
    made |= {f"narrow.{dtype}": floats((41,), dtype) for dtype in ("float16", "bfloat16")}
    made |= {f"trits.{dtype}": floats((6, 7), dtype) for dtype in ("float32", "bfloat16")}
    for dtype, kind in DENSE_TYPES.items():
        if kind.floating:
            made[f"difference.{dtype}"] = floats((9,), dtype)
        else:
            values = numbers(9, 60) + (60 if dtype == "uint8" else 0)
            made[f"difference.{dtype}"] = (values % 2 if dtype == "bool" else values).astype(
                kind.numpy
            )
    return made | {"equal": floats((3, 4), "float32"), "scalar": np.array(-2, np.int64)}


def dtype_of(name: str) -> str:
    return {"equal": "float32", "scalar": "int64"}.get(name, name.partition(".")[2])


class TypedBase:
    """The base by way of the protocol, since numpy has no bfloat16."""

    def __init__(self, tensors: dict[str, np.ndarray]):
        self.tensors, self.reads = tensors, list[str]()

    def read(self, name: str) -> tuple[str, np.ndarray] | None:
        self.reads.append(name)
        return (dtype_of(name), self.tensors[name]) if name in self.tensors else None

    def close(self) -> None:
        self.tensors = {}


def scales_of(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    kind = np.float64 if dtype == "float64" else np.float32
    return np.asarray((np.arange(int(np.prod(shape))) + 3) / 7, dtype=kind).reshape(shape)


def deltas(made: dict[str, np.ndarray]) -> list[DeltaTensor]:
    found = []
    for name, values in made.items():
        form, dtype = name.partition(".")[0], dtype_of(name)
        work = "float64" if dtype == "float64" else "float32"
        parts: tuple[np.ndarray, ...] = ()
        if form in ("equal", "scalar"):
            change = Change("equal")
        elif form == "difference":
            wide = values.itemsize > 1 and dtype != "float16"
            change = Change("difference", stored="int16" if wide else "uint8")
            kind = np.int16 if wide else np.uint8
            parts = ((numbers(9, 100) + 100).astype(kind),)
            if dtype == "bool":
                parts = (np.where(values, 1, 2).astype(np.uint8),)  # all turned
        elif form == "trits":
            packed = np.empty(-(-values.size // 5), dtype=np.uint8)
            pack_codes(numbers(values.size, 1).astype(np.int8), packed)
            rows = dtype == "bfloat16"
            change = Change("steps", rows, work, False, "trits")
            parts = (packed, scales_of(dtype, values.shape[:1] if rows else ()))
        else:
            rows, narrow = form == "rows", form == "narrow"
            everywhere = dtype in ("float16", "float64")
            change = Change("steps", rows, dtype if narrow else work, everywhere, "int8")
            steps = numbers(values.size, 127).astype(np.int8)
            steps[:4] = 0
            parts = (steps, scales_of(dtype, values.shape[:1] if rows else ()))

        def read(values: np.ndarray = values) -> np.ndarray:
            return values

        found.append(DeltaTensor(name, values.shape, dtype, change, *parts, base=read))
    return found


def ticket(made: dict[str, np.ndarray]) -> Ticket:
    dense = DenseTensor("dense", np.arange(6, dtype=np.float32), "float32", "float32")
    tied = TiedTensor("tied", "rows.bfloat16")
    return Ticket(seed=3, tensors=[*deltas(made), dense, tied])


def file_of(made: Ticket) -> bytes:
    stream = io.BytesIO()
    made.save(stream)
    return stream.getvalue()


@pytest.fixture(scope="module")
def file() -> bytes:
    return file_of(ticket(base()))


def test_fault_17_the_golden_file_decodes(regenerate_expected: bool, file: bytes) -> None:
    path, described = EXPECTED / "v3-delta.pabz", EXPECTED / "v3-delta.json"
    if regenerate_expected:
        path.write_bytes(file)
        with Ticket.open(path, base=TypedBase(base())) as opened:
            expected = {
                "format_version": 3,
                "written_by": "tests/formats/test_delta.py",
                "regenerate_with": "pytest tests/formats --regenerate-expected",
                "file_sha256": hashlib.sha256(file).hexdigest(),
                "base_sha256": opened.info().base,
                "state_sha256": opened.sha256(),
                "elements_hex": {name: opened.exact(name).tobytes().hex() for name in opened.names},
            }
        described.write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")
    expected = json.loads(described.read_text(encoding="utf-8"))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == expected["file_sha256"]
    with Ticket.open(path, base=TypedBase(base())) as opened:
        assert opened.verify() == expected["state_sha256"]
        assert opened.info().base == expected["base_sha256"]
        found = {name: opened.exact(name).tobytes().hex() for name in opened.names}
    assert found == expected["elements_hex"]


def test_fault_17_todays_writer_writes_the_same(
    file: bytes, take_apart: Callable[[bytes], Any]
) -> None:
    today, golden = take_apart(file), take_apart((EXPECTED / "v3-delta.pabz").read_bytes())
    assert (today.version, golden.version) == (3, 3)
    for parts in (today, golden):
        parts.fields.pop("dense")  # lengths of deflate streams
    assert today.fields == golden.fields


# A second reader, from SPEC.md


def rounded_to(value: float, dtype: str) -> float:
    """Round a float64 once, to nearest even."""
    if dtype == "float64":
        return value
    single: float = struct.unpack("<f", struct.pack("<f", value))[0]
    if dtype == "float32":
        return single
    if dtype == "float16":
        half: float = struct.unpack("<e", struct.pack("<e", single))[0]
        return half
    (bits,) = struct.unpack("<I", struct.pack("<f", single))
    whole, rest = divmod(bits, 65536)
    whole += rest > 32768 or (rest == 32768 and whole % 2 == 1)
    wide: float = struct.unpack("<f", struct.pack("<I", 65536 * whole))[0]
    return wide


LETTERS = {"float64": "d", "float32": "f", "float16": "e"}


def to_float(pattern: int, dtype: str) -> float:
    if dtype == "bfloat16":
        pattern, dtype = 65536 * pattern, "float32"
    letter = LETTERS[dtype]
    value: float = struct.unpack(f"<{letter}", pattern.to_bytes(struct.calcsize(letter), "little"))[
        0
    ]
    return value


def to_pattern(value: float, dtype: str) -> int:
    if dtype == "bfloat16":
        return int.from_bytes(struct.pack("<f", value), "little") // 65536
    return int.from_bytes(struct.pack(f"<{LETTERS[dtype]}", value), "little")


def patterns(values: bytes, size: int) -> list[int]:
    return [int.from_bytes(values[at : at + size], "little") for at in range(0, len(values), size)]


def second_reader(row: list[Any], base: bytes, parts: list[bytes]) -> bytes:
    """Return the elements of a delta, one at a time."""
    _, shape, dtype, kind, change = row
    assert kind == "delta"
    if change == ["equal"]:
        return base
    width = DENSE_TYPES[dtype].itemsize
    old, new = patterns(base, width), []
    if change[0] == "difference":
        stored = {"uint8": 1, "int16": 2, "int32": 4, "int64": 8}[change[1]]
        top, whole = 2 ** (8 * width - 1), 2 ** (8 * width)
        for pattern, z in zip(old, patterns(parts[0], stored), strict=True):
            difference = z // 2 if z % 2 == 0 else -(z + 1) // 2
            if "float" not in dtype:
                new.append((pattern + difference) % whole)
                continue
            place = whole - 1 - pattern if pattern >= top else pattern + top
            place = (place + difference) % whole
            new.append(place - top if place >= top else whole - 1 - place)
        return b"".join(pattern.to_bytes(width, "little") for pattern in new)
    _, rows, product, everywhere, stored = change
    work = "float64" if dtype == "float64" else "float32"
    if stored == "trits":
        digits = [byte // 3**digit % 3 for byte in parts[0] for digit in range(5)]
        steps = [(0, 1, -1)[digit] for digit in digits[: len(old)]]
    else:
        steps = list(struct.unpack(f"{len(old)}b", parts[0]))
    sizes = [to_float(one, work) for one in patterns(parts[1], DENSE_TYPES[work].itemsize)]
    for at, (pattern, n) in enumerate(zip(old, steps, strict=True)):
        if n == 0 and not everywhere:
            new.append(pattern)
            continue
        size = sizes[at // (len(old) // shape[0])] if rows else sizes[0]
        p = rounded_to(rounded_to(n * size, work), product)
        total = rounded_to(to_float(pattern, dtype) + p, work)
        new.append(to_pattern(rounded_to(total, dtype), dtype))
    return b"".join(pattern.to_bytes(width, "little") for pattern in new)


def from_planes(rows: list[list[Any]], raw: bytes) -> dict[str, bytes]:
    """Return the bytes of each tensor of a section of byte planes."""
    found, start = {}, 0
    for dtype in dict.fromkeys(row[2] for row in rows):
        members, width = [row for row in rows if row[2] == dtype], DENSE_TYPES[dtype].itemsize
        total = sum(int(np.prod(row[1])) for row in members)
        planes = [raw[start + plane * total :][:total] for plane in range(width)]
        joined = b"".join(bytes(plane[at] for plane in planes) for at in range(total))
        start += width * total
        for row in members:
            size = width * int(np.prod(row[1]))
            found[row[0]], joined = joined[:size], joined[size:]
    assert start == len(raw)
    return found


def test_a_second_reader_reads_the_same(take_apart: Callable[[bytes], Any]) -> None:
    held, golden = base(), (EXPECTED / "v3-delta.pabz").read_bytes()
    parts = take_apart(golden)
    rows = parts.fields["tensors"]
    sections: list[list[Any]] = []  # a row for each part, with a name of its own
    for row in rows:
        place = len(sections)
        if len(row) in (3, 4):
            sections.append(row)
        elif len(row) == 5 and row[4][0] == "difference":
            sections.append([f"{place}.{row[0]}", [int(np.prod(row[1]))], row[4][1]])
        elif len(row) == 5 and row[4][0] == "steps":
            count, trits = int(np.prod(row[1])), row[4][4] == "trits"
            kind, size = ("uint8", -(-count // 5)) if trits else ("int8", count)
            sections.append([f"{place}.{row[0]}", [size], kind])
            work = "float64" if row[2] == "float64" else "float32"
            sections.append([f"{place + 1}.{row[0]}", row[1][:1] if row[4][1] else [], work])
    ((count, encoding, _),) = parts.fields["dense"]
    assert (count, encoding) == (len(sections), "deflate")
    found = from_planes(sections, zlib.decompress(parts.payloads[0], -15))
    opened = Ticket.open(golden, base=TypedBase(held))
    digest, checked = hashlib.sha256(), 0
    remaining = iter(sections)
    for row in rows:
        if len(row) != 5:
            if len(row) != 2:
                next(remaining)
            continue
        have = {"equal": 0, "difference": 1, "steps": 2}[row[4][0]]
        own = [found[next(remaining)[0]] for _ in range(have)]
        values = second_reader(row, held[row[0]].tobytes(), own)
        assert opened.exact(row[0]).tobytes() == values, row
        name, dtype = row[0].encode(), row[2].encode()
        digest.update(struct.pack("<I", len(name)) + name + bytes([len(dtype)]) + dtype)
        digest.update(struct.pack(f"<B{len(row[1])}Q", len(row[1]), *row[1]))
        digest.update(held[row[0]].tobytes())
        checked += 1
    assert checked == len(held)
    assert digest.hexdigest() == parts.fields["base"]
    assert opened.exact("tied").tobytes() == opened.exact("rows.bfloat16").tobytes()


# Rules


def test_the_base_is_checked_once_and_closed(file: bytes) -> None:
    held = TypedBase(base())
    with Ticket.open(file, base=held) as opened:
        assert held.reads == []
        assert opened.exact("dense").tolist() == list(range(6))
        assert held.reads == []
        opened.exact("equal")
        assert held.reads == [*base(), "equal"]
        opened.exact("scalar")
        assert held.reads == [*base(), "equal", "scalar"]
        opened.exact("equal")[:] = 7  # its own memory
        assert opened.exact("equal").tobytes() == base()["equal"].tobytes()
    assert held.tensors == {}


def test_a_file_of_changes_needs_no_base_to_tell_what_it_holds(file: bytes) -> None:
    with Ticket.open(file) as opened:
        assert opened.kind("equal") == opened.kind("tied") == "delta"
        assert opened.exact("dense").tolist() == list(range(6))
        info = opened.info()
        opened.breakdown()
    rows = {row["name"]: row for row in info.tensors}
    assert (rows["equal"]["change"], rows["equal"]["bytes"], rows["equal"]["coder"]) == (
        "equal", 0, None,
    )  # fmt: skip
    assert rows["rows.float32"]["change"] == "steps"
    assert rows["dense"].get("change") is None


def refuse(parts: Any, message: str, error: type[Exception] = FormatError) -> None:
    with (
        pytest.raises(error, match=message),
        Ticket.open(parts.sign(), base=TypedBase(base())) as opened,
    ):
        opened.verify()


def row_of(parts: Any, name: str) -> list[Any]:
    found: list[Any] = next(row for row in parts.fields["tensors"] if row[0] == name)
    return found


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("steps.float32", 3, "gamma", "expected a row of 2, 3, 4, 5, 8 or 9 values"),
        ("steps.float32", 4, ["leaps"], "expected a known change .equal, steps, difference.,"),
        ("steps.float32", 4, [], "expected a change from the base, found a list of 0"),
        ("steps.float32", 4, "equal", "expected a change from the base, found 'equal'"),
        ("equal", 4, ["equal", 1], "expected a change from the base"),
        ("steps.float32", 4, ["steps", 2, "float32", 0, "int8"], "expected a change from the base"),
        ("steps.float32", 4, ["steps", True, "float32", 0, "int8"], "expected a change from"),
        ("steps.float32", 4, ["steps", 0, "float32", 0], "expected a change from the base"),
        ("steps.float32", 4, ["steps", 0, "float64", 0, "int8"], "expected a known type of a prod"),
        ("steps.float32", 4, ["steps", 0, [], 0, "int8"], "expected a known type of a product"),
        ("steps.float32", 4, ["steps", 0, "float32", 0, "int4"], "expected a known form of steps"),
        ("steps.bfloat16", 4, ["steps", 0, "float16", 0, "int8"], "expected a known type of a pro"),
        ("difference.int8", 4, ["steps", 0, "float32", 0, "int8"], "expected steps of a floating"),
        ("scalar", 4, ["difference", "uint16"], "expected a known type of differences"),
        ("difference.uint8", 4, ["difference", "int16"], "differences no wider than uint8, found"),
        ("scalar", 2, "int128", "expected a known dtype"),
        ("steps.float32", 1, [5, 0], "expected the size of a dimension from 1"),
    ],
)
def test_a_row_that_breaks_a_rule_is_refused(
    file: bytes,
    take_apart: Callable[[bytes], Any],
    name: str,
    place: int,
    value: Any,
    message: str,
) -> None:
    parts = take_apart(file)
    row_of(parts, name)[place] = value
    refuse(parts, message)


def test_scalars_have_no_rows() -> None:
    change = Change("steps", True, "float32", False, "int8")
    made = DeltaTensor("s", (), "float32", change, np.ones(1, np.int8), np.ones((), np.float32))
    with pytest.raises(PackError, match="expected rows with step sizes of their own, found a sca"):
        Ticket(seed=0, tensors=[made])


def test_the_digest_of_the_base_is_there_if_and_only_if_it_is_used(
    file: bytes, small_file: bytes, take_apart: Callable[[bytes], Any]
) -> None:
    parts = take_apart(file)
    found = parts.fields.pop("base")
    refuse(parts, "header: expected the SHA-256 of the base that its tensors change, found none")
    parts.fields["base"] = found.upper()
    refuse(parts, "header: expected the SHA-256 of the base as 64 hexadecimal digits")
    parts.fields["base"] = 7
    refuse(parts, "header: expected 'base' to be a str, found 7")
    parts.fields["base"] = "0" * 64
    refuse(parts, f"base: expected SHA-256 0{{64}} of the .* found {found}", BaseFileError)
    parts = take_apart(small_file)
    parts.fields["base"] = found
    refuse(parts, f"header: expected no base, found {found}")


def test_a_file_with_a_delta_is_of_version_3(
    file: bytes, take_apart: Callable[[bytes], Any]
) -> None:
    parts = take_apart(file)
    for version in (1, 2):
        parts.version = version
        refuse(parts, f"expected format version 3 for what the header holds, found {version}")


def test_wrong_numbers_are_refused(take_apart: Callable[[bytes], Any]) -> None:
    values = np.ones(8, np.float32)

    def steps(stored: str, *parts: np.ndarray) -> DeltaTensor:
        change = Change("steps", False, "float32", False, stored)
        return DeltaTensor("w", (8,), "float32", change, *parts, base=lambda: values)

    one = np.ones((), np.float32)
    wrong = np.full(8, -128, np.int8)
    for made, message in (
        (steps("int8", wrong, one), "expected -127 to 127 steps, found 8 others"),
        (
            steps("int8", np.ones(8, np.int8), np.asarray(-one)),
            "finite step sizes of at least 0,",
        ),
        (
            steps("int8", np.ones(8, np.int8), np.asarray(one * np.inf)),
            "expected finite step sizes of at",
        ),
        (steps("int8", np.ones(7, np.int8), one), r"expected \[8\] numbers of type int8, found"),
        (steps("int8", np.ones(8, np.int8)), "expected 2 arrays for a change of form steps, fou"),
        (steps("trits", np.array([243, 0], np.uint8), one), "five trits a byte, found 1 other"),
        (steps("trits", np.array([0, 27], np.uint8), one), "five trits a byte, found 1 other"),
    ):
        with pytest.raises(PackError, match=f"tensor 'w': .*{message}"):
            Ticket(seed=0, tensors=[made])
    good = take_apart(file_of(Ticket(seed=0, tensors=[steps("int8", np.ones(8, np.int8), one)])))
    assert good.fields["tensors"][0][4] == ["steps", 0, "float32", 0, "int8"]
    raw = np.full(8, -128, np.int8).tobytes() + one.tobytes()
    for payload, message in (
        (raw, "expected -127 to 127 steps, found 8 others"),
        (bytes(8) + struct.pack("<f", -1.0), "expected finite step sizes of at least 0, found 1"),
        (bytes(8) + struct.pack("<f", float("inf")), "expected finite values, found 1"),
    ):
        stream = zlib.compressobj(9, zlib.DEFLATED, -15)
        stored = stream.compress(payload) + stream.flush()
        kind, stored = ("deflate", stored) if len(stored) <= 12 else ("raw", payload)
        good.fields["dense"], good.payloads = [[2, kind, len(stored)]], [stored]
        with pytest.raises(FormatError, match=message), Ticket.open(good.sign()) as opened:
            opened.tensor("w")


def test_a_change_that_makes_wrong_values_is_refused() -> None:
    """Whatever base and digest say: no tensor has values that section 5 forbids."""
    largest = np.full(4, np.finfo(np.float32).max, np.float32)
    most = np.asarray(largest[0])
    steps = Change("steps", False, "float32", False, "int8")
    made = DeltaTensor("w", (4,), "float32", steps, np.ones(4, np.int8), most, lambda: largest)
    with pytest.raises(FormatError, match="tensor 'w': expected finite values, found 4"):
        made.array()
    bad = np.full(4, np.nan, np.float32)
    made = DeltaTensor("w", (4,), "float32", steps, np.ones(4, np.int8), most, lambda: bad)
    with pytest.raises(FormatError, match="tensor 'w': expected a finite base, found other values"):
        made.array()
    moved = Change("difference", stored="uint8")
    flags = np.ones(4, bool)
    made = DeltaTensor("w", (4,), "bool", moved, np.full(4, 2, np.uint8), None, lambda: flags)
    with pytest.raises(FormatError, match="tensor 'w': expected booleans of 0 or 1, found other"):
        made.array()
    ones = np.ones(2, np.float32)
    down = np.full(2, -3, np.int8)
    made = DeltaTensor("running_var", (2,), "float32", steps, down, ones[:1], lambda: ones)
    with pytest.raises(FormatError, match="expected variances of at least 0, found 2 below"):
        made.array()
    with pytest.raises(BaseFileError, match="expected the base that it changes, found none; give"):
        DeltaTensor("w", (2,), "float32", Change("equal")).array()


def test_every_damaged_byte_is_refused(file: bytes) -> None:
    """FAULT 5: never another state."""
    for at in range(0, len(file), 5):
        broken = bytearray(file)
        broken[at] ^= 1 << at % 8
        with pytest.raises(FormatError), Ticket.open(bytes(broken), base=TypedBase(base())) as one:
            one.verify()
    for length in range(0, len(file), 37):
        with pytest.raises(FormatError), Ticket.open(file[:length]) as one:
            one.verify()


def test_what_the_base_brings_does_not_count_as_expansion() -> None:
    """A small file may change a large base; its own numbers are limited as ever."""
    entry = DeltaTensor("w", (2**31,), "float32", Change("equal")).entry({})
    assert (entry.loaded_bytes, entry.expanded_bytes) == (2**33, 0)
    values = np.zeros(2**27, np.uint8)
    large = DeltaTensor("w", values.shape, "uint8", Change("equal"), base=lambda: values)
    tied = TiedTensor("tied", "w")
    written = file_of(Ticket(seed=0, tensors=[large, tied]))
    with Ticket.open(written, base=open_base({"w": values})) as opened:
        assert opened.info().float32_bytes == 2**28
    with Ticket.open(written) as opened:
        assert opened.info().bytes < 500
    with pytest.raises(LimitError, match="expected at most 1000 bytes of tensors"):
        Ticket.open(written, max_bytes=1000)


def test_half_precision_storage_leaves_changes_exact() -> None:
    values = np.linspace(0, 1, 40, dtype=np.float32)
    change = Change("difference", stored="uint8")
    made = DeltaTensor(
        "w", (40,), "float32", change, np.full(40, 4, np.uint8), None, lambda: values
    )
    stream = io.BytesIO()
    Ticket(seed=0, tensors=[made]).save(stream, dense_dtype="bfloat16")
    with Ticket.open(stream.getvalue(), base=open_base({"w": values})) as opened:
        assert opened.exact("w").view("u4").tolist() == (values.view("u4") + 2).tolist()
