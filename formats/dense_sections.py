"""Sections of dense tensors: raw, deflated, by the adaptive coder, or by coded byte planes.

``adaptive`` (`pabzip.formats.dense_adaptive`) is nearly always the smallest where tensors are
small, ``planes`` (`pabzip.formats.dense_planes`) where they are large. For ``deflate``, good at
what repeats over long stretches, and ``raw``, bytes of equal weight stand together: for each
element type in the order of its first tensor, the elements of all its tensors in order, split into
byte planes, the lowest byte of every element first.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.formats.dense import (
    DenseEntry,
    DenseTensor,
    by_type,
    from_stored,
    joined,
    to_stored,
)
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

_EXPANSION = {"deflate": 1032, "planes": 1 << 19}
"""Most bytes that one byte becomes: 258 from 2 bits, and a plane of 2**20 bytes from 2."""

PLANES_BYTES = 1 << 16
"""Fewest bytes of a section that ``planes`` is tried for."""

CODES_BYTES = 1 << 12
"""The same where most elements are single bytes, such as packed codes of ternary tensors, whose
upper and lower bits ``adaptive`` cannot tell apart: ``planes`` takes a fifth less of them."""

_SAMPLES, _SAMPLE = 4, 1 << 16  # parts of a tensor that are deflated on trial, elements of each
_VECTOR = 1 << 12  # most elements of a vector that ``adaptive`` is tried on whole
_TRIED = (1 << 10, 1 << 14)  # elements that it is tried on: of another tensor at least, of all
_DENSE_BITS = 2  # bits a byte above which small integers have no structure that pays to be modeled


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
        expansion = _EXPANSION.get(group.encoding)
        if expansion is not None and size > expansion * group.length:
            raise FormatError(
                place,
                f"expected at most {expansion} times {group.length} bytes, found {size}",
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

    Not every encoding is tried on a large section, because of the time that takes. ``planes`` is
    from `PLANES_BYTES` or `CODES_BYTES` on, and deflate, at worst half a megabyte a second, from
    then on only where samples make it likely to win. So is ``adaptive``, thirty times as slow as
    ``planes``, and it is left out above `DENSE_SECTION_BYTES`, and where most elements of a section
    of `PLANES_BYTES` are single bytes that ``planes`` shows to be nearly random.
    """
    stored = [one.stored for one in tensors]
    arrays = [
        to_stored(one.values, one.dtype, one.stored).astype(
            DENSE_TYPES[one.stored].numpy, copy=False
        )
        for one in tensors
    ]
    size = sum(array.nbytes for array in arrays)
    tried: dict[str, bytes] = {}
    single = sum(array.nbytes for array in arrays if array.itemsize == 1)
    if size >= (PLANES_BYTES if 2 * single <= size else CODES_BYTES):
        from pabzip.formats.dense_planes import encode_planes

        tried["planes"] = encode_planes(stored, arrays)
    noise = size >= PLANES_BYTES and 2 * single > size
    noise = noise and 8 * len(tried["planes"]) > _DENSE_BITS * size
    entries = [one.entry({}) for one in tensors]
    if size < PLANES_BYTES or (
        size <= DENSE_SECTION_BYTES and not noise and _adaptive_may_win(entries, arrays)
    ):
        from pabzip.formats.dense_adaptive import encode_adaptive

        tried["adaptive"] = encode_adaptive(entries, arrays)
    elif not _deflate_may_win(arrays, len(tried["planes"])):
        if len(tried["planes"]) < size:
            return "planes", tried["planes"]
        return "raw", b"".join(_raw(stored, arrays))
    raw = b"".join(_raw(stored, arrays))
    tried = {"raw": raw, "deflate": deflate(raw), **tried}
    encoding = min(tried, key=lambda name: len(tried[name]))
    return encoding, tried[encoding]


def _raw(stored: Sequence[str], arrays: Sequence[NDArray[Any]]) -> Iterator[bytes]:
    """Yield the raw bytes of a section: one element type after the other, lowest bytes first."""
    for _, places in by_type(stored):
        elements = joined([arrays[at] for at in places])
        yield elements.view(np.uint8).reshape(elements.size, -1).T.tobytes()


def _adaptive_may_win(entries: Sequence[DenseEntry], arrays: Sequence[NDArray[Any]]) -> bool:
    """Return whether ``adaptive`` may be smaller than ``planes``: if it is on samples.

    Short vectors are tried whole, batch norm's among them, which agree from one to the next. They
    decide for large matrices in their section, too, whose samples count as much as all of them.
    """
    from pabzip.formats.dense_adaptive import encode_adaptive
    from pabzip.formats.dense_planes import encode_planes

    whole = [one.size <= (_VECTOR if one.ndim < 2 else _TRIED[0]) for one in arrays]
    most = max(_TRIED[0], _TRIED[1] // max(whole.count(False), 1))
    samples = [
        array.reshape(-1) if all_of_it else _pieces(array.reshape(-1), most)
        for array, all_of_it in zip(arrays, whole, strict=True)
    ]
    if 2 * sum(one.nbytes for one in samples) > sum(one.nbytes for one in arrays):
        return True
    gain = 0.0
    for kind in {*whole}:
        places = [at for at, all_of_it in enumerate(whole) if all_of_it == kind]
        tried = [samples[at] for at in places]
        planes = encode_planes([entries[at].stored for at in places], tried)
        adaptive = encode_adaptive([entries[at] for at in places], tried)
        share = sum(one.nbytes for one in tried) / sum(arrays[at].nbytes for at in places)
        gain += (len(planes) - len(adaptive)) / share
    return gain > 0


def _pieces(elements: NDArray[Any], most: int) -> NDArray[Any]:
    """Return about so many of a tensor's elements, in `_SAMPLES` parts from start to end."""
    if elements.size <= most:
        return elements
    size = most // _SAMPLES
    starts = np.linspace(0, elements.size - size, _SAMPLES, dtype=np.int64)
    return np.concatenate([elements[start : start + size] for start in starts])


def _deflate_may_win(arrays: Sequence[NDArray[Any]], size: int) -> bool:
    """Return whether deflate may be smaller than ``size``: if its quickest level is, on samples."""
    taken = deflated = 0
    for array in arrays:
        elements = array.reshape(-1)
        last = max(elements.size - _SAMPLE, 0)
        for start in np.linspace(0, last, _SAMPLES if last else 1, dtype=np.int64):
            sample = elements[start : start + _SAMPLE].view(np.uint8)
            planes = sample.reshape(-1, array.itemsize).T.tobytes()
            taken += len(planes)
            deflated += len(zlib.compress(planes, 1))
    return deflated * sum(array.nbytes for array in arrays) < size * taken


def decode_group(
    entries: Sequence[DenseEntry],
    encoding: str,
    payload: bytes | memoryview,
    place: str,
    *,
    threads: int | None = None,
) -> list[DenseTensor]:
    """Return the tensors of a dense section, checked; ``planes`` decodes on so many threads."""
    if encoding == "adaptive":
        from pabzip.formats.dense_adaptive import decode_adaptive

        arrays = decode_adaptive(entries, payload, place)
    elif encoding == "planes":
        from pabzip.formats.dense_planes import decode_planes

        arrays = decode_planes(entries, payload, place, threads=threads)
    else:
        size = sum(entry.stored_bytes for entry in entries)
        raw = payload if encoding == "raw" else inflate(payload, size, place)
        arrays = _split_planes(entries, raw)
    tensors = []
    for entry, array in zip(entries, arrays, strict=True):
        if entry.dtype == "bool" and array.view(np.uint8).max() > 1:
            raise FormatError(
                tensor_place(entry.name), "expected booleans of 0 or 1, found other bytes"
            )
        values = from_stored(array.reshape(entry.shape), entry.dtype, entry.stored)
        tensors.append(DenseTensor(entry.name, values, entry.dtype, entry.stored))
        tensors[-1].check_values()
    return tensors


def _split_planes(entries: Sequence[DenseEntry], raw: bytes | memoryview) -> list[NDArray[Any]]:
    """Return the elements of each tensor, as stored, from a section's raw bytes."""
    arrays: dict[int, NDArray[Any]] = {}
    start = 0
    for stored, places in by_type([entry.stored for entry in entries]):
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
