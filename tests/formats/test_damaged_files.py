"""FAULTS 1 to 7, 11 and 15: damage to the container, with and without checksums recomputed."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pabzip.errors import FormatError
from pabzip.ticket import Ticket

Read = Callable[[bytes], dict[str, Any]]


def test_the_file_itself_reads(small_file: bytes, read: Read) -> None:
    assert list(read(small_file)) == [
        "conv.weight",
        "bn.weight",
        "bn.running_var",
        "bn.num_batches_tracked",
        "fc.weight",
        "fc.bias",
    ]


def test_the_second_writer_agrees_with_ours(small_file: bytes, parts: Any) -> None:
    text = parts.sign()
    assert Ticket.open(text).verify() == Ticket.open(small_file).verify()


def test_fault_1_cut_at_every_byte(small_file: bytes, read: Read) -> None:
    for length in range(len(small_file)):
        with pytest.raises(FormatError, match="expected"):
            read(small_file[:length])


def test_fault_1_empty_and_one_byte(tmp_path: Any) -> None:
    path = tmp_path / "m.pabz"
    path.write_bytes(b"")
    with pytest.raises(FormatError, match=r"m\.pabz: magic: .* found an empty file"):
        Ticket.open(path)
    path.write_bytes(b"\x89")
    with pytest.raises(FormatError, match="found it cut at 1 bytes"):
        Ticket.open(path)


def zip_file() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("data.pkl", b"x")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (zip_file(), "zip archive, perhaps a PyTorch checkpoint"),
        (pickle.dumps({"a": 1}), "pickle, which is never loaded"),
        (struct.pack("<Q", 20) + b'{"w":{"dtype":"F32"}', "safetensors"),
        (b"\x08\x08\x12\x07pytorch", "ONNX"),
        (b"\x1f\x8b\x08" + bytes(20), "gzip"),
        (b"\x93NUMPY" + bytes(20), "numpy"),
        (b"\x89PABZ\n\x1a" + bytes(20), "text-mode transfer"),
        (b"nonsense" * 4, "found the bytes 6e 6f 6e"),
    ],
)
def test_fault_2_other_files_are_named(file: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        Ticket.open(file)


def test_fault_2_a_pickle_is_never_loaded() -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("unpickled",))

    with pytest.raises(FormatError, match="pickle"):
        Ticket.open(pickle.dumps(Trap()))


@pytest.mark.parametrize("version", [4, 5, 65535])
def test_fault_3_newer_versions(parts: Any, version: int) -> None:
    parts.version = version
    with pytest.raises(FormatError, match=f"up to 3, found {version}; upgrade pabzip"):
        Ticket.open(parts.sign())


@pytest.mark.parametrize(("name", "value"), [("version", 0), ("reserved", 1)])
def test_fault_3_version_zero_and_reserved(parts: Any, name: str, value: int) -> None:
    setattr(parts, name, value)
    with pytest.raises(FormatError, match="expected a version from 1 and 0"):
        Ticket.open(parts.sign())


@pytest.mark.parametrize("extra", [b"\0", b"PK", bytes(5000)])
def test_fault_4_trailing_bytes(small_file: bytes, extra: bytes) -> None:
    with pytest.raises(FormatError, match="something follows the last section"):
        Ticket.open(small_file + extra)
    with pytest.raises(FormatError, match="something follows the last section"):
        Ticket.open(io.BytesIO(small_file + extra))


def test_fault_4_a_second_file_appended(small_file: bytes) -> None:
    with pytest.raises(FormatError, match="something follows"):
        Ticket.open(small_file + small_file)


def test_fault_5_every_single_bit_flip(small_file: bytes, read: Read) -> None:
    damaged = bytearray(small_file)
    for bit in range(8 * len(small_file)):
        damaged[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises(FormatError):
            read(bytes(damaged))
        damaged[bit >> 3] ^= 1 << (bit & 7)


@pytest.mark.parametrize("length", [2**32 - 1, 2**31, (16 << 20) + 1])
@pytest.mark.parametrize("name", ["length", "size"])
def test_fault_6_header_lengths_beyond_the_cap(parts: Any, name: str, length: int) -> None:
    setattr(parts, name, length)
    file = parts.sign()
    tracemalloc.start()
    with pytest.raises(FormatError, match=f"at most 16777216 bytes, found {length}"):
        Ticket.open(file)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_fault_6_header_length_beyond_the_file(parts: Any) -> None:
    parts.length = 16 << 20
    with pytest.raises(FormatError, match="found the file cut"):
        Ticket.open(parts.sign())


@pytest.mark.parametrize("change", [-1, 1, 100])
def test_fault_6_inflated_length_that_is_wrong(parts: Any, change: int) -> None:
    text = json.dumps(parts.fields).encode()
    parts.text, parts.size = text, len(text) + change
    with pytest.raises(FormatError, match="once inflated, found"):
        Ticket.open(parts.sign())


def test_fault_6_bytes_after_the_deflate_stream(parts: Any) -> None:
    text = json.dumps(parts.fields).encode()
    parts.text, parts.stored = text, zlib.compress(text, wbits=-15) + b"more"
    with pytest.raises(FormatError, match="found 4 bytes after it"):
        Ticket.open(parts.sign())


def test_fault_7_a_header_of_100_megabytes(parts: Any) -> None:
    parts.stored = zlib.compress(b"[" * (100 << 20), 1, wbits=-15)
    parts.text, parts.size = b"", 1000
    file = parts.sign()
    tracemalloc.start()
    with pytest.raises(FormatError, match="expected 1000 bytes once inflated, found more"):
        Ticket.open(file)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "text",
    [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 9 + b"]" * 9, b'{"tensors":' + b"[" * 8 + b"]" * 8],
)
def test_fault_7_deep_nesting(parts: Any, text: bytes) -> None:
    parts.text = text
    with pytest.raises(FormatError, match="expected at most 8 levels of nesting"):
        Ticket.open(parts.sign())


def test_fault_7_brackets_in_strings_are_not_nesting(parts: Any, read: Read) -> None:
    parts.fields["metadata"]["note"] = '[[[[[[[[[[ "{{{{{{{{{{ \\'
    read(parts.sign())


@pytest.mark.parametrize("change", [-1, 1, 7, 10**6, -(10**3)])
@pytest.mark.parametrize("row", [0, 4])
def test_fault_11_lengths_of_codes(parts: Any, row: int, change: int) -> None:
    parts.fields["tensors"][row][7] += change
    with pytest.raises(FormatError, match="bytes of codes"):
        Ticket.open(parts.sign())


def test_fault_11_lengths_of_dense_sections(parts: Any) -> None:
    parts.fields["dense"][0][2] -= 1
    with pytest.raises(FormatError, match="something follows the last section"):
        Ticket.open(parts.sign())
    parts.fields["dense"][0][2] += 2
    with pytest.raises(FormatError, match=r"expected .* bytes, found it cut at"):
        Ticket.open(parts.sign())


def test_fault_11_sections_cannot_lie_elsewhere(parts: Any) -> None:
    """Offsets are nowhere in a file, so an overlap can only be a wrong length or a wrong sum."""
    assert not {"offset", "offsets", "start"} & set(parts.fields)
    parts.fields["offsets"] = [0, 0]
    with pytest.raises(FormatError, match="no unknown key, found 'offsets'"):
        Ticket.open(parts.sign())


def test_fault_15_swapped_sections_fail_the_digest(parts: Any, read: Read) -> None:
    parts.fields["tensors"][0], parts.fields["tensors"][4] = (
        parts.fields["tensors"][4],
        parts.fields["tensors"][0],
    )
    parts.payloads[:2] = parts.payloads[1::-1]
    with pytest.raises(FormatError, match=r"expected SHA-256 .* regenerated"):
        read(parts.sign())


def test_fault_15_another_seed_fails_the_digest(parts: Any, read: Read) -> None:
    parts.fields["seed"] = "12"
    with pytest.raises(FormatError, match="expected SHA-256"):
        read(parts.sign())


@pytest.mark.parametrize("at", [0, 1])
def test_fault_15_damaged_codes_with_right_checksums(parts: Any, read: Read, at: int) -> None:
    payload = parts.payloads[at]
    for bit in range(8 * len(payload)):
        changed = bytearray(payload)
        changed[bit >> 3] ^= 128 >> (bit & 7)
        parts.payloads[at] = bytes(changed)
        with pytest.raises(FormatError):
            read(parts.sign())


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_fault_15_any_mutation_is_refused_or_the_same_ticket(data: Any, small_file: bytes) -> None:
    """Bytes replaced, removed or inserted: a FormatError and nothing else."""
    start = data.draw(st.integers(0, len(small_file)), "start")
    stop = data.draw(st.integers(start, min(len(small_file), start + 40)), "stop")
    file = small_file[:start] + data.draw(st.binary(max_size=40), "new") + small_file[stop:]
    if file == small_file:
        return
    with pytest.raises(FormatError):
        Ticket.open(file).arrays()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(["normal", "float32", "huffman", "deflate", "raw", "bool", "bfloat16"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_fault_15_any_header_is_refused_or_read(
    data: Any, small_file: bytes, take_apart: Callable[[bytes], Any]
) -> None:
    """One value anywhere in the header replaced, and all checksums recomputed."""
    parts = take_apart(small_file)
    place: Any = parts.fields
    while True:
        keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys), "key")
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans(), "here"):
            place[key] = data.draw(json_values, "value")
            break
        place = inner
    try:
        arrays = Ticket.open(parts.sign(), max_bytes=1 << 24).arrays()
    except FormatError:
        pass
    else:
        assert all(np.isfinite(array).all() for array in arrays.values())
