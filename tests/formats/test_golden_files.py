"""FAULT 17: files in tests/expected decode to what they did when they were written.

``pytest --regenerate-expected`` writes them anew; a file of a released version must never change.
Deflate streams are compared once inflated, since another zlib may pack them otherwise.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitarray import bitarray, decodetree

from pabzip.formats import DENSE_TYPES
from pabzip.seeds import Frozen, InitSpec, weights
from pabzip.seeds.philox import words
from pabzip.ticket import DenseTensor, SeededTensor, TernaryTensor, Ticket, TiedTensor

EXPECTED = Path(__file__).parents[1] / "expected"
TREE = decodetree({0: bitarray("0"), 1: bitarray("10"), -1: bitarray("11")})


def codes(shape: tuple[int, ...], keep: int) -> np.ndarray:
    """Codes by arithmetic that no library can change: about one in ``keep`` survives."""
    place = np.arange(int(np.prod(shape)), dtype=np.uint64)
    mixed = (place * np.uint64(2654435761) + np.uint64(12345)) % np.uint64(2**32)
    active = mixed // np.uint64(7) % np.uint64(keep) == 0
    sign = np.where(mixed // np.uint64(65536) % np.uint64(2) == 0, 1, -1)
    return np.where(active, sign, 0).astype(np.int8).reshape(shape)


def dense(name: str, values: Any, dtype: str = "float32") -> DenseTensor:
    return DenseTensor(name, np.asarray(values, dtype=DENSE_TYPES[dtype].numpy), dtype, dtype)


def every_kind() -> Ticket:
    kinds = [dense(f"dense.{name}", [0, 1], name) for name in DENSE_TYPES]
    return Ticket(
        seed=2**64 - 1,
        tensors=[
            SeededTensor("normal.weight", InitSpec("normal", 2.0**-3, 0), codes((8, 3, 3, 3), 4)),
            dense("normal.bias", np.arange(8) / 8 - 0.5),
            SeededTensor("uniform.weight", InitSpec("uniform", 0.75, 7), codes((5, 72), 3)),
            SeededTensor(
                "constant.weight", InitSpec("signed_constant", 0.125, 2**32 - 1), codes((7,), 1)
            ),
            SeededTensor(
                "ternary.weight",
                InitSpec("signed_constant", 1.0, 8),
                codes((6, 20), 2),
                scales=np.arange(3, 9, dtype=np.float32) / 16,
            ),
            TiedTensor("ternary.tied", "ternary.weight"),
            *kinds,
            TiedTensor("dense.tied", "dense.bfloat16"),
            dense("scalar", -0.0),
        ],
        metadata={"purpose": "golden", "größe": 1.5, "n": -3, "yes": True, "nothing": None},
    )


def lenet() -> Ticket:
    tensors: list[SeededTensor | DenseTensor] = []
    shapes = [(300, 64), (100, 300), (10, 100)]
    for stream, shape in enumerate(shapes):
        scale = float(np.sqrt(np.float32(2 / shape[1])))
        name = f"fc{stream + 1}"
        tensors.append(
            SeededTensor(f"{name}.weight", InitSpec("normal", scale, stream), codes(shape, 10))
        )
        tensors.append(dense(f"{name}.bias", (np.arange(shape[0]) % 17 - 8) / 48))
    options = {"num_classes": 10, "in_channels": 1, "image_size": 8}
    return Ticket(seed=0, tensors=tensors, arch="lenet-300-100", arch_options=options)


def frozen_masks() -> Ticket:
    """A mask frozen in part, one frozen whole, and one as free as in version 1."""

    def seeded(stream: int, shape: tuple[int, ...], pruned: int, kept: int) -> SeededTensor:
        held = codes(shape, 3).reshape(-1)
        frozen = [frozen_code(9, stream, i, pruned, kept) for i in range(held.size)]
        for place, code in enumerate(frozen):
            held[place] = held[place] if code is None else code
        spec = InitSpec("signed_constant", 0.25, stream)
        part = Frozen(pruned, kept) if pruned or kept else None
        return SeededTensor(f"w{stream}", spec, held.reshape(shape), frozen=part)

    tensors = [
        seeded(0, (12, 5, 3, 3), 32113, 13763),
        seeded(2**31 + 1, (7, 11), 0, 0),
        seeded(2, (9, 10), 60000, 5536),
    ]
    return Ticket(seed=9, tensors=tensors)


def ternary_tensors() -> Ticket:
    """Every element type and layout of ternary tensors, every scaling, and one with -0.0."""

    def scaled(name: str, dtype: str, scales: list[int], columns: bool = False) -> TernaryTensor:
        element = DENSE_TYPES[dtype].numpy
        bits = np.array(scales, f"<u{element.itemsize}").view(element)
        return TernaryTensor.of_codes(name, codes((6, 20), 2), bits, dtype=dtype, columns=columns)

    def stored(name: str, layout: str, shape: tuple[int, ...], scaling: str, **more: Any) -> Any:
        weights = {"bitnet": 4, "tq1_0": 256 / 54, "tq2_0": 256 / 66}[layout]
        held = TernaryTensor.of_codes(name, codes((int(np.prod(shape) * weights),), 2))
        changes = {"shape": shape, "dtype": "uint8", "layout": layout, "scaling": scaling}
        return replace(held, **changes, **more)

    of_blocks = np.array([0x3400, 0, 0x3C01], "<u2").view("<f2")
    zeros = scaled("zeros", "float32", [0x3F800000])
    pairs = np.arange(30, dtype=np.uint8) * 41 + 3  # some of which are those of -0.0
    tensors = [
        scaled("tensor", "float32", [0x3DCCCCCD]),
        scaled("rows", "bfloat16", [0x3C12, 0x3C13, 1, 0x7F7F, 0x3C12, 0x8000 - 0x4000]),
        scaled("columns", "float16", list(range(1, 21)), columns=True),
        scaled("groups", "float16", list(range(0x3000, 0x3000 + 24))),
        replace(zeros, packed=pairs, per_byte=4),
        TernaryTensor.of_codes("integers", codes((7,), 2)),
        stored("divided", "bitnet", (3, 5), "divide"),
        dense("divided_scale", [0x3FE0], "bfloat16"),
        stored("multiplied", "bitnet", (2,), "multiply"),
        dense("multiplied_scale", [0.3]),
        stored("unknown", "bitnet", (1, 2, 2), "none"),
        stored("tq1_0", "tq1_0", (1, 162), "runs", run=256, scales=of_blocks),
        stored("tq2_0", "tq2_0", (3, 66), "runs", run=256, scales=of_blocks),
        TiedTensor("tied", "rows"),
        SeededTensor("seeded", InitSpec("signed_constant", 0.5, 0), codes((4, 4), 2)),
    ]
    return Ticket(seed=3, tensors=tensors)


def mixed(count: int, seed: int) -> np.ndarray:
    """uint32 by arithmetic that no library can change."""
    value = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    value ^= np.uint64(seed << 40)
    value = (value ^ (value >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return ((value ^ (value >> np.uint64(32))) & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def planes() -> Ticket:
    """Dense sections of `planes`: one of every type, one of equal bytes in chunks of 2**16."""

    def skewed(name: str, count: int) -> DenseTensor:
        bits = mixed(count, len(name))
        small = np.minimum.reduce([bits >> np.uint32(8 * k) & np.uint32(255) for k in range(4)])
        sign = 1 - 2 * (bits & np.uint32(1)).astype(np.int64)
        kind = DENSE_TYPES[name].numpy
        if name == "bool":
            return dense(name, bits % 5 == 0, name)
        if name == "uint8":
            return dense(name, small, name)
        if kind.kind == "i":
            return dense(name, small.astype(np.int64) // 8 * sign, name)
        values = (small / 64.0 + bits / 2.0**40) * sign
        if name == "bfloat16":
            return dense(name, values.astype("<f4").view("<u4") >> 16, name)
        return dense(name, values, name)

    counts = {"bool": 9000, "int8": 8000, "uint8": 5000, "int16": 4000, "int32": 2500}
    floats = {"int64": 2500, "bfloat16": 8000, "float16": 1500, "float32": 800, "float64": 500}
    tensors = [skewed(name, count) for name, count in (counts | floats).items()]
    return Ticket(seed=1, tensors=[*tensors, dense("equal", np.full(150_001, -2), "int64")])


def frozen_code(seed: int, stream: int, place: int, pruned: int, kept: int) -> int | None:
    """Return the code of a frozen place, or None of a learned one, as SPEC.md says it."""
    drawn = int(words(seed, stream ^ 2**28, place, place + 1)[0])
    part = (2 * (drawn % 2**31) + 1) // 2**16
    return 0 if part < pruned else 1 if part < pruned + kept else None


GOLDEN: dict[str, tuple[Callable[[], Ticket], dict[str, Any]]] = {
    "v1-every-kind": (every_kind, {}),
    "v1-lenet-huffman": (lenet, {}),
    "v1-lenet-huffman-bfloat16": (lenet, {"dense_dtype": "bfloat16"}),
    "v1-planes": (planes, {}),
    "v2-frozen": (frozen_masks, {}),
    "v3-ternary": (ternary_tensors, {}),
}


def describe(ticket: Ticket) -> dict[str, Any]:
    """What a golden file must decode to."""
    seeded = [name for name in ticket.names if ticket.kind(name) in ("seeded", "ternary")]
    return {
        "seed": str(ticket.seed),
        "arch": ticket.arch,
        "names": list(ticket.names),
        "state_sha256": ticket.sha256(backend="numpy"),
        "codes_sha256": {
            name: hashlib.sha256(ticket.codes(name).tobytes()).hexdigest() for name in seeded
        },
        "first_weights_hex": {
            name: ticket.weight(name).reshape(-1)[:8].astype(">f4").tobytes().hex(" ", 4)
            for name in ticket.names
            if ticket.dtype(name) == "float32"
        },
    }


@pytest.mark.parametrize("name", GOLDEN)
def test_fault_17_golden_files_decode(
    name: str, regenerate_expected: bool, save: Callable[..., bytes]
) -> None:
    path, described = EXPECTED / f"{name}.pabz", EXPECTED / f"{name}.json"
    if regenerate_expected:
        make, options = GOLDEN[name]
        path.write_bytes(save(make(), coder="huffman", **options))
        provenance = {
            "format_version": int(name[1]),
            "written_by": f"tests/formats/test_golden_files.py, {make.__name__}()",
            "regenerate_with": "pytest tests/formats --regenerate-expected",
            "file_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        with Ticket.open(path) as ticket:
            text = json.dumps(provenance | describe(ticket), indent=1, ensure_ascii=False)
        described.write_text(text + "\n", encoding="utf-8")
    expected = json.loads(described.read_text(encoding="utf-8"))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == expected["file_sha256"]
    with Ticket.open(path) as ticket:
        found = describe(ticket)
        assert ticket.verify() == expected["state_sha256"]
    assert {key: expected[key] for key in found} == found


@pytest.mark.parametrize("name", GOLDEN)
def test_fault_17_todays_writer_writes_the_same(
    name: str, save: Callable[..., bytes], take_apart: Callable[[bytes], Any]
) -> None:
    make, options = GOLDEN[name]
    today = take_apart(save(make(), coder="huffman", **options))
    golden = take_apart((EXPECTED / f"{name}.pabz").read_bytes())
    seeded = sum(len(row) >= 8 for row in golden.fields["tensors"])
    assert today.payloads[:seeded] == golden.payloads[:seeded]
    for parts in (today, golden):
        parts.fields.pop("dense", None)  # lengths of deflate streams
    assert today.fields == golden.fields


@pytest.mark.parametrize("name", GOLDEN)
def test_a_second_reader_reads_the_same(
    name: str,
    take_apart: Callable[[bytes], Any],
    plain_dense: Callable[[list[list[Any]], bytes], dict[str, bytes]],
    plain_ternary: Any,
    plain_planes: Callable[[list[list[Any]], bytes], dict[str, bytes]],
) -> None:
    """Codes by bitarray and dense values by plain Python, from SPEC.md alone."""
    file = (EXPECTED / f"{name}.pabz").read_bytes()
    parts, ticket = take_apart(file), Ticket.open(file)
    payloads = iter(parts.payloads)
    rows = parts.fields["tensors"]
    for row in (row for row in rows if len(row) >= 8):
        bits = bitarray()
        bits.frombytes(next(payloads))
        count = int(np.prod(row[1]))
        frozen: list[int | None] = [None] * count
        pruned, kept = 0, 0
        if isinstance(row[-1], list):
            seed, (*fractions, pruned, kept) = int(parts.fields["seed"]), row[-1]
            frozen = [frozen_code(seed, row[4], place, *fractions) for place in range(count)]
        assert (frozen.count(0), frozen.count(1)) == (pruned, kept)
        learned = iter(bits[: count - pruned - kept + row[6] - kept].decode(TREE))
        values = [next(learned) if code is None else code for code in frozen]
        assert next(learned, None) is None
        assert ticket.codes(row[0]).reshape(-1).tolist() == values
    for row in (row for row in rows if len(row) == 2):
        assert rows.index(row) > [other[0] for other in rows].index(row[1])
        assert np.array_equal(ticket.weight(row[0]), ticket.weight(row[1]))
    # The scales of a seeded tensor take the place of a dense one.
    scaled = {row[0] for row in rows if len(row) == 9 and row[8] == 1}
    # So do codes and scales of a ternary one.
    members_of = {row[0]: plain_ternary.members(row) for row in rows if len(row) == 5}
    ternary: dict[str, list[bytes]] = {name: [] for name in members_of}
    remaining = iter(
        member
        for row in rows
        if len(row) in (3, 4, 5) or row[0] in scaled
        for member in members_of.get(
            row[0], [[row[0], row[1][:1], "float32"] if row[0] in scaled else row]
        )
    )
    for count, encoding, _ in parts.fields.get("dense", []):
        members = [next(remaining) for _ in range(count)]
        payload = next(payloads)
        numbered = [[f"{at}.{row[0]}", *row[1:]] for at, row in enumerate(members)]
        if encoding == "adaptive":
            found = plain_dense(numbered, payload)  # which goes by what follows the last full stop
        elif encoding == "planes":
            found = plain_planes(numbered, payload)
        else:
            found = second_dense_reader(numbered, encoding, payload)
        for key, row in zip(numbered, members, strict=True):
            values = found[key[0]]
            if row[0] in ternary:
                ternary[row[0]].append(values)
                continue
            if row[2:] == ["float32", "bfloat16"]:
                values = b"".join(b"\0\0" + values[at : at + 2] for at in range(0, len(values), 2))
            if row[0] in scaled:
                check_scaled(ticket, row[0], np.frombuffer(values, "<f4"))
            else:
                assert ticket.dense(row[0]).values.tobytes() == values
    for row in (row for row in rows if len(row) == 5):
        held = plain_ternary.decode(row, *ternary[row[0]], *[b""][len(ternary[row[0]]) - 1 :])
        assert ticket.exact(row[0]).tobytes() == held


def check_scaled(ticket: Ticket, name: str, scales: np.ndarray) -> None:
    """A weight is the sign that the seed drew, its code, and the scale of its row."""
    signs = weights(ticket.seed, ticket.spec(name), 0, ticket.codes(name).size, backend="numpy")
    rows = signs.reshape(len(scales), -1) * ticket.codes(name).reshape(len(scales), -1)
    expected = rows * scales[:, None] + np.float32(0)  # no -0.0
    assert ticket.weight(name).reshape(rows.shape).tobytes() == expected.tobytes()


def second_dense_reader(rows: list[Any], encoding: str, payload: bytes) -> dict[str, bytes]:
    """Return the bytes of each tensor of a section of byte planes, as stored."""
    raw = zlib.decompress(payload, -15) if encoding == "deflate" else payload
    sizes = {"64": 8, "32": 4, "16": 2, "bool": 1}
    elements: dict[str, bytes] = {}
    for stored in dict.fromkeys(row[-1] for row in rows):
        members = [row for row in rows if row[-1] == stored]
        counts = [int(np.prod(row[1])) for row in members]
        size = next((size for end, size in sizes.items() if stored.endswith(end)), 1)
        total = sum(counts)
        planes = [raw[plane * total : (plane + 1) * total] for plane in range(size)]
        raw = raw[size * total :]
        start = 0
        for row, count in zip(members, counts, strict=True):
            elements[row[0]] = b"".join(
                bytes(plane[at] for plane in planes) for at in range(start, start + count)
            )
            start += count
    assert raw == b""
    return elements
