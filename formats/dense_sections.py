"""Sections of dense tensors: byte planes, deflate, or the adaptive coder.

``adaptive`` (`pabzip.formats.dense_adaptive`) is nearly always the smallest. For ``deflate``, good
at what repeats over long stretches, and ``raw``, bytes of equal weight stand together: for each
element type in the order of its first tensor, the elements of all its tensors in order, split into
byte planes, the lowest byte of every element first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.formats.dense import DenseEntry, DenseTensor, from_stored, to_stored
from pabzip.formats.limits import (
    DENSE_ENCODINGS,
    DENSE_SECTION_BYTES,
    DENSE_TYPES,
    MAX_INTEGER,
    check_integer,
    check_name_of,
    deflate,
    inflate,
    tensor_place,
)

_DEFLATE_EXPANSION = 1032  # 258 bytes from 2 bits: deflate cannot make more of its input


@dataclass(frozen=True, slots=True)
class DenseGroup:
    """A dense section: how many dense tensors share it, its encoding, and bytes of its payload."""

    count: int
    encoding: str
    length: int


def check_groups(dense: Sequence[DenseEntry], groups: Sequence[DenseGroup]) -> None:
    """Check that the dense sections take up the dense tensors exactly."""
    for number, group in enumerate(groups):
        place = f"dense section {number}"
        check_integer(place, "number of tensors", group.count, 1, len(dense))
        check_name_of("encoding", group.encoding, DENSE_ENCODINGS, place)
        check_integer(place, "bytes", group.length, 0, MAX_INTEGER)
    if sum(group.count for group in groups) != len(dense):
        raise FormatError(
            "header",
            f"expected the dense sections to hold {len(dense)} tensors, found "
            f"{sum(group.count for group in groups)}",
        )
    for number, (group, entries) in enumerate(grouped(dense, groups)):
        size = sum(entry.stored_bytes for entry in entries)
        place = f"dense section {number}"
        if group.count > 1 and size > DENSE_SECTION_BYTES:
            raise FormatError(
                place,
                f"expected at most {DENSE_SECTION_BYTES} bytes in a shared section, found {size}",
            )
        if group.encoding == "raw" and group.length != size:
            raise FormatError(place, f"expected {size} raw bytes, found {group.length}")
        if group.length > size:
            raise FormatError(place, f"expected at most {size} bytes, found {group.length}")
        if group.encoding == "deflate" and size > _DEFLATE_EXPANSION * group.length:
            raise FormatError(
                place,
                f"expected at most {_DEFLATE_EXPANSION} times {group.length} bytes, found {size}",
            )


def grouped(
    dense: Sequence[DenseEntry], groups: Sequence[DenseGroup]
) -> Iterator[tuple[DenseGroup, Sequence[DenseEntry]]]:
    """Yield each dense section with the tensors in it."""
    start = 0
    for group in groups:
        yield group, dense[start : start + group.count]
        start += group.count


def encode_group(tensors: Sequence[DenseTensor]) -> tuple[str, bytes]:
    """Return a dense section's encoding, the smallest, and its payload.

    A single tensor of more than `DENSE_SECTION_BYTES` is not tried with ``adaptive``, which would
    save it about two percent and decode some fifty times slower than deflate.
    """
    entries = [one.entry({}) for one in tensors]
    arrays = [
        to_stored(one.values, one.dtype, one.stored).astype(
            DENSE_TYPES[one.stored].numpy, copy=False
        )
        for one in tensors
    ]
    raw = b""
    for _, places in _by_type([one.stored for one in tensors]):
        elements = np.concatenate([arrays[at].reshape(-1) for at in places])
        raw += elements.view(np.uint8).reshape(elements.size, -1).T.tobytes()
    tried = {"raw": raw, "deflate": deflate(raw)}
    if len(raw) <= DENSE_SECTION_BYTES:
        from pabzip.formats.dense_adaptive import encode_adaptive

        tried["adaptive"] = encode_adaptive(entries, arrays)
    encoding = min(tried, key=lambda name: len(tried[name]))
    return encoding, tried[encoding]


def decode_group(
    entries: Sequence[DenseEntry], encoding: str, payload: bytes | memoryview, place: str
) -> list[DenseTensor]:
    """Return the tensors of a dense section, checked."""
    if encoding == "adaptive":
        from pabzip.formats.dense_adaptive import decode_adaptive

        arrays = decode_adaptive(entries, payload, place)
    else:
        size = sum(entry.stored_bytes for entry in entries)
        raw = payload if encoding == "raw" else inflate(payload, size, place)
        arrays = _split_planes(entries, raw)
    tensors = []
    for entry, array in zip(entries, arrays, strict=True):
        if entry.dtype == "bool" and (array.view(np.uint8) > 1).any():
            raise FormatError(
                tensor_place(entry.name), "expected booleans of 0 or 1, found other bytes"
            )
        values = from_stored(array.reshape(entry.shape), entry.dtype, entry.stored)
        tensors.append(DenseTensor(entry.name, values, entry.dtype, entry.stored))
        tensors[-1].check_values()
    return tensors


def _by_type(stored: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    """Yield each element type, by first appearance, with the places of its tensors."""
    for name in dict.fromkeys(stored):
        yield name, [at for at, other in enumerate(stored) if other == name]


def _split_planes(entries: Sequence[DenseEntry], raw: bytes | memoryview) -> list[NDArray[Any]]:
    """Return the elements of each tensor, as stored, from a section's raw bytes."""
    arrays: dict[int, NDArray[Any]] = {}
    start = 0
    for stored, places in _by_type([entry.stored for entry in entries]):
        count = sum(entries[at].count for at in places)
        element = DENSE_TYPES[stored].numpy
        stop = start + count * element.itemsize
        planes = np.frombuffer(raw[start:stop], dtype=np.uint8).reshape(element.itemsize, -1)
        elements = planes.T.copy().reshape(-1).view(element)  # memory of their own
        start, first = stop, 0
        for at in places:
            arrays[at] = elements[first : first + entries[at].count]
            first += entries[at].count
    return [arrays[at] for at in range(len(entries))]
