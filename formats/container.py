"""The container: magic, version, deflated header, sections, and nothing else.

Only lengths are stored, so where a section starts follows from those before it: gaps and overlaps
cannot be expressed. What is not allowed raises `FormatError`, here and in what is called.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from pabzip.errors import FormatError, shown
from pabzip.formats.contents import Header
from pabzip.formats.header import from_json, to_json
from pabzip.formats.limits import MAX_HEADER_BYTES, deflate, inflate
from pabzip.formats.sources import Source

MAGIC = b"\x89PABZ\r\n\x1a"
"""A byte with the top bit set, the name, both line ends and a control-Z, so that a text-mode
transfer damages the magic before anything else is read (the habit comes from PNG)."""

_KNOWN = (
    (b"PK\x03\x04", "a zip archive, perhaps a PyTorch checkpoint; pack it with `pabzip pack`"),
    (b"\x1f\x8b", "gzip data; decompress it first"),
    (b"\xfd7zXZ\x00", "xz data; decompress it first"),
    (b"\x28\xb5\x2f\xfd", "Zstandard data; decompress it first"),
    (b"\x93NUMPY", "a numpy array"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
)


def check_magic(start: bytes) -> None:
    """Refuse a file that does not start with `MAGIC`, and say what its first bytes look like."""
    if start.startswith(MAGIC):
        return
    if not start:
        raise FormatError("magic", "expected a .pabz file, found an empty file")
    if MAGIC.startswith(start):
        raise FormatError("magic", f"expected a .pabz file, found it cut at {len(start)} bytes")
    raise FormatError("magic", f"expected a .pabz file, found {_looks_like(start)}")


def _looks_like(start: bytes) -> str:
    """Describe a file of another kind by its first bytes."""
    for prefix, description in _KNOWN:
        if start.startswith(prefix):
            return description
    if start.startswith(b"\x89PABZ"):
        return "one that a text-mode transfer has damaged; transfer it as binary"
    if start[0] == 0x80 and start[1:2] and start[1] in range(2, 6):
        return "a Python pickle, which is never loaded"
    if start[8:9] == b"{":
        return "safetensors"
    if start[0] == 0x08 and start[2:3] in (b"\x12", b"\x3a", b"\x42"):
        return "an ONNX model"
    return f"the bytes {start[:8].hex(' ')}"


VERSION = 3
"""The newest format version that this package reads; it writes the oldest that will do."""

_FIELDS = struct.Struct("<HHII")  # version, reserved, stored header bytes, inflated header bytes
_CHECKSUM = struct.Struct("<I")
PREAMBLE_BYTES = len(MAGIC) + _FIELDS.size + _CHECKSUM.size
CHECKSUM_BYTES = _CHECKSUM.size


@dataclass(frozen=True, slots=True)
class Section:
    """A payload's place in the file; its CRC-32 follows it.

    Attributes:
        place: what it holds, for messages.
        offset: of the payload's first byte.
        length: of the payload in bytes, without the checksum.
    """

    place: str
    offset: int
    length: int


def encode_header(header: Header) -> bytes:
    """Return everything that comes before the first section."""
    text = to_json(header)
    stored = deflate(text)
    if max(len(text), len(stored)) > MAX_HEADER_BYTES:
        raise FormatError(
            "header",
            f"expected at most {MAX_HEADER_BYTES} bytes, found {len(text)}; shorten the metadata",
        )
    fields = _FIELDS.pack(header.version, 0, len(stored), len(text))
    return MAGIC + fields + checksum(fields, stored) + stored


def read_header(source: Source) -> tuple[Header, int]:
    """Read and check a file's header; return it with the offset of the first section."""
    start = bytes(source.read(0, PREAMBLE_BYTES))
    check_magic(start)
    if len(start) < PREAMBLE_BYTES:
        raise FormatError("preamble", f"expected {PREAMBLE_BYTES} bytes, found {len(start)}")
    fields, sealed = start[len(MAGIC) : -CHECKSUM_BYTES], start[-CHECKSUM_BYTES:]
    version, reserved, length, size = _FIELDS.unpack(fields)
    if version > VERSION:
        raise FormatError(
            "preamble",
            f"expected a format version up to {VERSION}, found {version}; upgrade pabzip",
        )
    if version < 1 or reserved:
        raise FormatError(
            "preamble", f"expected a version from 1 and 0, found version {version} and {reserved}"
        )
    if max(length, size) > MAX_HEADER_BYTES:
        raise FormatError(
            "preamble",
            f"expected a header of at most {MAX_HEADER_BYTES} bytes, found {max(length, size)}",
        )
    stored = bytes(source.read(PREAMBLE_BYTES, length))
    if len(stored) < length:
        raise FormatError("header", f"expected {length} bytes, found the file cut at {len(stored)}")
    if checksum(fields, stored) != sealed:
        raise FormatError("header", "expected its CRC-32, found another; the file is damaged")
    header = from_json(inflate(stored, size, "header"))
    if header.version != version:
        raise FormatError(
            "preamble",
            f"expected format version {header.version} for what the header holds, found {version}",
        )
    return header, PREAMBLE_BYTES + length


def sections(header: Header, start: int) -> Iterator[Section]:
    """Yield the sections in the order of the file: side stream, codes, dense tensors."""
    lengths = [("side stream", header.side)] if header.side else []
    lengths += [
        (f"codes of {shown(entry.name)}", coding.length)
        for entry, coding in zip(header.contents.seeded, header.codings, strict=True)
    ]
    lengths += [
        (f"dense section {number}", group.length) for number, group in enumerate(header.groups)
    ]
    for place, length in lengths:
        yield Section(place, start, length)
        start += length + CHECKSUM_BYTES


def check_extent(source: Source, expected: int) -> None:
    """Check that the file ends exactly where its last section does."""
    found = source.extent(expected + 1)
    if found < expected:
        raise FormatError("file", f"expected {expected} bytes, found it cut at {found}")
    if found > expected:
        raise FormatError(
            "file", f"expected {expected} bytes, found more: something follows the last section"
        )


def read_section(source: Source, section: Section) -> bytes | memoryview:
    """Read a section's payload and check its CRC-32."""
    data = memoryview(source.read(section.offset, section.length + CHECKSUM_BYTES))
    if len(data) != section.length + CHECKSUM_BYTES:
        raise FormatError(
            section.place, f"expected {section.length} bytes and a CRC-32, found the file cut"
        )
    payload = data[: section.length]
    if checksum(payload) != data[section.length :]:
        raise FormatError(section.place, "expected its CRC-32, found another; the file is damaged")
    return payload


def checksum(*parts: bytes | memoryview) -> bytes:
    """Return the CRC-32 of the parts, one after the other, as 4 bytes."""
    value = 0
    for part in parts:
        value = zlib.crc32(part, value)
    return _CHECKSUM.pack(value)
