"""The `planes` encoding of dense tensors: bytes of one significance together, coded by frequency.

For large tensors of any type. A float's exponent, which has little entropy, is set apart from its
sign and mantissa, which have nearly all of theirs; the idea is that of DFloat11. Elements pass in
chunks of a million, which are coded alone: on several threads, in memory that does not grow with
the tensor. SPEC.md, section 4, states every step.

Source: Zhang et al., "70% size, 100% accuracy: lossless LLM compression for efficient GPU inference
via dynamic-length float" (arXiv 2504.11651, 2025). They code exponents by Huffman's codes; here it
is `pabzip.formats.rans`, and every plane is tried.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.formats import rans
from pabzip.formats.coder import run_tasks
from pabzip.formats.dense import DenseEntry, by_type, joined
from pabzip.formats.limits import DENSE_TYPES
from pabzip.seeds.compiled import compiled
from pabzip.seeds.generation import thread_count

CHUNK_BITS = (16, 20)
"""Least and most of the logarithm of a chunk's elements."""

RAW, CONSTANT, CODED = 0, 1, 2
"""How a plane of a chunk is kept: its bytes, the one byte that all are, or a stream of rANS."""

_EXPONENT_BITS = {"float64": 11, "float32": 8, "float16": 5, "bfloat16": 8}
_LEAST_GAIN = 1024  # a plane is coded where that saves at least one byte of so many
_MOST_EXPANSION = 1 << 15  # of a section by its writer; readers allow a file 65,536 unless told
_AHEAD = 4  # chunks a thread that wait for the chunks before them to be written


class _Split(NamedTuple):
    """How elements of a stored type become planes.

    Attributes:
        unsigned: unsigned integers of the type's size, in the machine's byte order.
        exponent: bits of a float's exponent; 0 for integers.
        zigzag: whether signed integers are folded: v becomes 2v, or -2v - 1 below 0.
    """

    unsigned: np.dtype[Any]
    exponent: int
    zigzag: bool

    @classmethod
    def of(cls, stored: str) -> _Split:
        """Return how a stored type splits."""
        element = DENSE_TYPES[stored].numpy
        signed = element.kind == "i" and element.itemsize > 1
        return cls(np.dtype(f"u{element.itemsize}"), _EXPONENT_BITS.get(stored, 0), signed)


@compiled
def _to_planes(elements, exponent, zigzag, planes):  # type: ignore[no-untyped-def]
    """Write the planes of elements, the lowest byte first: uint8 (item size, elements).

    One loop a plane, which LLVM makes vector instructions of.
    """
    width = 8 * len(planes)
    mantissa = np.uint64(max(width - 1 - exponent, 0))
    top, one = np.uint64(width - 1), np.uint64(1)
    over = np.uint64(max(exponent - 8, 0))  # bits of the exponent beyond one byte
    low = np.uint64(exponent) - over
    heads, lows = (one << np.uint64(exponent)) - one, (one << low) - one
    tails = (one << mantissa) - one
    for number in range(len(planes)):
        plane, shift = planes[number], np.uint64(8 * number)
        if exponent:
            for at in range(len(elements)):
                value = np.uint64(elements[at])
                head = (value >> mantissa) & heads
                head = ((head & lows) << over) | (head >> low)
                rest = ((value >> top) << mantissa) | (value & tails)
                value = (head << (mantissa + one)) | rest
                plane[at] = np.uint8(value >> shift)
        elif zigzag:
            for at in range(len(elements)):
                value = np.uint64(elements[at])
                sign = np.uint64(0) - ((value >> top) & one)
                plane[at] = np.uint8(((value << one) ^ sign) >> shift)
        else:
            for at in range(len(elements)):
                plane[at] = np.uint8(np.uint64(elements[at]) >> shift)


@compiled
def _from_planes(planes, exponent, zigzag, elements):  # type: ignore[no-untyped-def]
    """Write the elements that planes hold."""
    width = 8 * len(planes)
    mantissa = np.uint64(max(width - 1 - exponent, 0))
    top, one = np.uint64(width - 1), np.uint64(1)
    over = np.uint64(max(exponent - 8, 0))
    low = np.uint64(exponent) - over
    overs, tails = (one << over) - one, (one << mantissa) - one
    for at in range(len(elements)):
        elements[at] = planes[0, at]
    for number in range(1, len(planes)):
        plane, shift = planes[number], np.uint64(8 * number)
        for at in range(len(elements)):
            elements[at] |= np.uint64(plane[at]) << shift
    if exponent:
        for at in range(len(elements)):
            value = np.uint64(elements[at])
            head = value >> (mantissa + one)
            head = ((head & overs) << low) | (head >> over)
            sign = ((value >> mantissa) & one) << top
            elements[at] = sign | (head << mantissa) | (value & tails)
    elif zigzag:
        for at in range(len(elements)):
            value = np.uint64(elements[at])
            elements[at] = (value >> one) ^ (np.uint64(0) - (value & one))


def encode_planes(
    stored: Sequence[str], arrays: Sequence[NDArray[Any]], *, threads: int | None = None
) -> bytes:
    """Return the payload of a section.

    Args:
        stored: the stored type of each tensor.
        arrays: their elements, of the numpy type that `DENSE_TYPES` gives, in any shape.
        threads: at most so many; None takes every CPU that the process may use.
    """
    payload = _encode(stored, arrays, CHUNK_BITS[1], threads)
    if sum(array.nbytes for array in arrays) > _MOST_EXPANSION * len(payload):
        return _encode(stored, arrays, CHUNK_BITS[0], threads)
    return payload


def _encode(
    stored: Sequence[str], arrays: Sequence[NDArray[Any]], bits: int, threads: int | None
) -> bytes:
    """Return a payload of chunks of ``2**bits`` elements; only what is coded grows with them."""
    payload = io.BytesIO()
    payload.write(bytes([bits]))
    most = _AHEAD * thread_count(threads)
    for name, places in by_type(stored):
        elements = joined([arrays[at] for at in places])
        begins = range(0, len(elements), 1 << bits)
        for first in range(0, len(begins), most):
            chunks = [elements[begin : begin + (1 << bits)] for begin in begins[first:][:most]]
            coded = [b""] * len(chunks)
            work = partial(_encode_chunk, name, chunks, coded)
            run_tasks([partial(work, at) for at in range(len(chunks))], threads)
            for blocks in coded:
                payload.write(blocks)
    return payload.getvalue()


def _encode_chunk(stored: str, chunks: Sequence[NDArray[Any]], coded: list[bytes], at: int) -> None:
    """Put the blocks of one chunk, a plane each, in its place."""
    unsigned, exponent, zigzag = _Split.of(stored)
    elements = chunks[at].view(unsigned.newbyteorder("<")).astype(unsigned, copy=False)
    planes = np.empty((unsigned.itemsize, len(elements)), dtype=np.uint8)
    _to_planes(elements, exponent, zigzag, planes)
    coded[at] = b"".join(_encode_block(plane) for plane in planes)


def _encode_block(plane: NDArray[np.uint8]) -> bytes:
    """Return one plane of one chunk in the smallest form."""
    counts, frequencies = np.empty((2, rans.SYMBOLS), dtype=np.int64)
    rans.histogram(plane, counts)
    if counts[plane[0]] == len(plane):
        return bytes([CONSTANT, plane[0]])
    rans.normalize(counts, frequencies)
    most = len(plane) - len(plane) // _LEAST_GAIN - 5
    if rans.cost(counts, frequencies) < most:
        stream = rans.encode(plane, frequencies)
        if len(stream) < most:
            return struct.pack("<BI", CODED, len(stream)) + stream
    return bytes([RAW]) + plane.tobytes()


def decode_planes(
    entries: Sequence[DenseEntry],
    payload: bytes | memoryview,
    place: str,
    *,
    threads: int | None = None,
) -> list[NDArray[Any]]:
    """Return the elements of each tensor of a section, as stored, flat; arguments likewise.

    Where each block begins and ends is checked before anything is allocated.

    Raises:
        FormatError: the payload is not exactly these elements; the message names ``place``.
    """
    view = memoryview(payload)
    if not view or not CHUNK_BITS[0] <= view[0] <= CHUNK_BITS[1]:
        found = view[0] if view else "none"
        raise FormatError(
            place, f"expected a first byte from {CHUNK_BITS[0]} to {CHUNK_BITS[1]}, found {found}"
        )
    counts = {
        stored: sum(entries[at].count for at in places)
        for stored, places in by_type([entry.stored for entry in entries])
    }
    chunks = list(_chunks(counts, view, place))
    arrays: list[NDArray[Any]] = [np.empty(0)] * len(entries)
    flat = {stored: np.empty(n, DENSE_TYPES[stored].numpy) for stored, n in counts.items()}
    tasks = [
        partial(_decode_chunk, stored, blocks, flat[stored][begin:end], place)
        for stored, begin, end, blocks in chunks
    ]
    run_tasks(tasks, threads)
    for stored, places in by_type([entry.stored for entry in entries]):
        begin = 0
        for at in places:
            arrays[at] = flat[stored][begin : begin + entries[at].count]
            begin += entries[at].count
    return arrays


_Block = tuple[int, memoryview]


def _chunks(
    counts: Mapping[str, int], payload: memoryview, place: str
) -> Iterator[tuple[str, int, int, list[_Block]]]:
    """Yield type, first element, end and blocks of each chunk, and check that they fill a payload.

    Args:
        counts: elements of each stored type, in order.
        payload: from its first byte on, which is checked.
        place: of the section, for messages.
    """
    chunk, at = 1 << payload[0], 1
    for stored, count in counts.items():
        for begin in range(0, count, chunk):
            end = min(begin + chunk, count)
            blocks = []
            for _ in range(DENSE_TYPES[stored].itemsize):
                mode = payload[at] if at < len(payload) else RAW
                at += 1
                size = end - begin if mode == RAW else 1
                if mode == CODED and at + 4 <= len(payload):
                    size = int.from_bytes(payload[at : at + 4], "little")
                    at += 4
                if mode not in (RAW, CONSTANT, CODED):
                    raise FormatError(place, f"expected a block of kind 0, 1 or 2, found {mode}")
                if at + size > len(payload):
                    raise FormatError(
                        place,
                        f"expected a block of {size} bytes, found {max(len(payload) - at, 0)} left",
                    )
                blocks.append((mode, payload[at : at + size]))
                at += size
            yield stored, begin, end, blocks
    if at != len(payload):
        raise FormatError(
            place, f"expected the blocks to end the section, found {len(payload) - at} bytes more"
        )


def _decode_chunk(stored: str, blocks: Sequence[_Block], out: NDArray[Any], place: str) -> None:
    """Fill one chunk of elements from its blocks, a plane each."""
    unsigned, exponent, zigzag = _Split.of(stored)
    target = out.view(unsigned.newbyteorder("<"))
    alone = len(blocks) == 1
    planes = target[None] if alone else np.empty((len(blocks), len(out)), dtype=np.uint8)
    for plane, (mode, block) in zip(planes, blocks, strict=True):
        if mode == CODED:
            rans.decode(block, plane, place)
        else:
            plane[:] = np.frombuffer(block, dtype=np.uint8)
    if alone:
        return
    elements = target if target.dtype.isnative else np.empty(len(out), dtype=unsigned)
    _from_planes(planes, exponent, zigzag, elements)
    if elements is not target:
        target[:] = elements
