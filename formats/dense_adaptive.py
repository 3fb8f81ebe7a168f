"""The `adaptive` encoding of dense tensors: a range coder whose probabilities follow the data.

Encoding and decoding are one description, so that they cannot drift apart: a writer's elements are
passed through, a reader's are filled in.

Batch norm decides the sizes that matter. Of its vectors the low mantissa bits are noise, which
nothing compresses; what a model can save are the exponents, the values that repeat (every empty
channel has the same scale, mean and variance) and where they repeat (in the channels where they
did in the vector before). SPEC.md, section 4, states every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.formats.context.range_coder import (
    BitStream,
    Contexts,
    pass_bit,
    pass_plain,
)
from pabzip.formats.dense import DenseEntry
from pabzip.formats.limits import DENSE_TYPES
from pabzip.seeds.compiled import compiled

MODELED = 3
"""First bits of a tail that have contexts; the others are as good as random."""

FLAG_CONTEXTS = 12
"""Of a kind: two flags, each under three states of the neighbor and two of the element before."""

MEMORY = 20
"""Bits that the probability of a context is the mean of, about."""

ABSENT = 2
"""State of the neighbor of an element that has none."""

BYTES_AN_ELEMENT = 40
"""Most bytes that one element takes: at most 18 bits of up to 11 each, and 64 plain ones."""

_ONE = np.uint64(1)


@compiled
def pass_elements(  # type: ignore[no-untyped-def]
    coder, recent, layout, elements, neighbors, known, before
):
    """Pass elements of one kind through the range coder.

    Args:
        coder: the stream, under the kind's contexts: flags, then the tree.
        recent: uint64[2], the kind's favorite and its last literal. Changed.
        layout: int64[4]: bits of the head, bits of a float's tail (0 for integers, whose heads
            give them), lowest bits of the tail that are 0 and left out, the largest head allowed.
        elements: uint64, bit patterns of floats, or integers of at least 0: written, or filled in.
        neighbors: uint8, 1 where the element at the same place of the tensor before was
            recent, 0 where it was not, `ABSENT`.
        known: uint8, where the same of these elements is written.
        before: whether the element before the first was recent.

    Returns:
        Whether the last element was recent (0 or 1); -1 where a stream to be read is not valid.
    """
    head_bits, float_tail, left_out, largest = layout[0], layout[1], layout[2], layout[3]
    for index in range(len(elements)):
        value = elements[index]
        flag = 2 * np.int64(neighbors[index]) + before
        before = 1
        known[index] = before
        if pass_bit(coder, flag, 1 if value == recent[0] else 0):
            elements[index] = recent[0]
            continue
        flag += FLAG_CONTEXTS // 2
        if pass_bit(coder, flag, 1 if value == recent[1] else 0):
            elements[index] = recent[1]
            recent[0], recent[1] = recent[1], recent[0]
            continue
        before = 0
        known[index] = before
        head, tail, tail_bits = _split(value, head_bits, float_tail)
        node = 1
        for place in range(head_bits - 1, -1, -1):
            node = 2 * node + pass_bit(coder, FLAG_CONTEXTS + node, (head >> place) & 1)
        if not coder.writing:
            head, tail = node - (1 << head_bits), np.int64(0)
            if head > largest:
                return -1
            tail_bits = float_tail if float_tail else max(head - 1, 0)
        plain_bits = max(tail_bits - MODELED - left_out, 0)
        shown = np.int64(0)
        for place in range(tail_bits - 1, left_out + plain_bits - 1, -1):
            bit = pass_bit(coder, FLAG_CONTEXTS + node, (tail >> place) & 1)
            node, shown = 2 * node + bit, 2 * shown + bit
        plain = pass_plain(coder, tail >> left_out, plain_bits)
        tail = ((shown << plain_bits) | plain) << left_out
        value = _join(head, np.uint64(tail), head_bits, float_tail)
        elements[index] = value
        recent[1] = value
    return before


@compiled
def _split(value, head_bits, float_tail):  # type: ignore[no-untyped-def]
    """Return an element's head, its tail, and the bits of the tail."""
    if float_tail:
        mantissa_bits = np.uint64(float_tail - 1)
        mantissa = value & ((_ONE << mantissa_bits) - _ONE)
        head = np.int64((value >> mantissa_bits) & ((_ONE << np.uint64(head_bits)) - _ONE))
        sign = value >> np.uint64(head_bits + float_tail - 1)
        return head, np.int64((sign << mantissa_bits) | mantissa), np.int64(float_tail)
    head = np.int64(0)
    while head < 64 and value >> np.uint64(head):
        head += 1
    tail_bits = head - 1 if head else np.int64(0)
    return head, np.int64(value & ((_ONE << np.uint64(tail_bits)) - _ONE)), tail_bits


@compiled
def _join(head, tail, head_bits, float_tail):  # type: ignore[no-untyped-def]
    """Return the element of a head and a tail."""
    if float_tail:
        mantissa_bits = np.uint64(float_tail - 1)
        sign = tail >> mantissa_bits
        mantissa = tail & ((_ONE << mantissa_bits) - _ONE)
        upper = (sign << np.uint64(head_bits)) | np.uint64(head)
        return (upper << mantissa_bits) | mantissa
    if head == 0:
        return np.uint64(0)
    return (_ONE << np.uint64(head - 1)) | tail


_EXPONENT_BITS = {"float64": 11, "float32": 8, "float16": 5, "bfloat16": 8}
_MANTISSA_BITS = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}
_OWN_KINDS = 32
_BLOCK = 4096  # elements at a time, so that buffers stay small
_Key = tuple[str, str, bool]


def encode_adaptive(entries: Sequence[DenseEntry], arrays: Sequence[NDArray[Any]]) -> bytes:
    """Return the payload of a section, given the elements of its tensors as stored."""
    flat = [array.reshape(-1) for array in arrays]
    model = _Model(entries)
    model.note_left_out(flat)
    stream = BitStream(None)
    model.run(stream, flat, "")
    return bytes(kind.left_out for kind in model.floating) + stream.getvalue()


def decode_adaptive(
    entries: Sequence[DenseEntry], payload: bytes | memoryview, place: str
) -> list[NDArray[Any]]:
    """Return the elements of a section's tensors, as stored, in one dimension."""
    model = _Model(entries)
    stream = BitStream(memoryview(payload)[model.read_left_out(payload, place) :])
    arrays = [np.zeros(entry.count, DENSE_TYPES[entry.stored].numpy) for entry in entries]
    model.run(stream, arrays, place)
    stream.close(place)
    return arrays


class _Kind:
    """What the coder has learnt of one kind of tensor: same type, same role, vector or not."""

    def __init__(self, stored: str):
        self.stored = stored
        width = 8 * DENSE_TYPES[stored].itemsize
        self.floating = stored in _EXPONENT_BITS
        self.head_bits = _EXPONENT_BITS.get(stored, width.bit_length())
        self.tail_bits = 1 + _MANTISSA_BITS[stored] if self.floating else 0
        self.largest = (1 << self.head_bits) - 1 if self.floating else width
        self.left_out = 0
        contexts = FLAG_CONTEXTS + (1 << (self.head_bits + MODELED))
        self.contexts = Contexts.fresh(contexts, MEMORY)
        self.recent = np.zeros(2, dtype=np.uint64)

    @property
    def layout(self) -> NDArray[np.int64]:
        """What `pass_elements` must know of an element."""
        return np.array([self.head_bits, self.tail_bits, self.left_out, self.largest], np.int64)

    @property
    def most_left_out(self) -> int:
        """Most bits that may be left out: those without contexts."""
        return self.tail_bits - MODELED


class _Model:
    """The kinds of a section's tensors, and the order in which elements pass."""

    def __init__(self, entries: Sequence[DenseEntry]):
        self._kinds: dict[_Key, _Kind] = {}
        self._kind_of = [self._kind(entry) for entry in entries]

    @property
    def floating(self) -> Sequence[_Kind]:
        """The kinds of floating types, by first appearance."""
        return [kind for kind in self._kinds.values() if kind.floating]

    def run(self, stream: BitStream, arrays: Sequence[NDArray[Any]], place: str) -> None:
        """Pass the elements of all tensors: write them, or fill them in."""
        last = np.zeros(0, dtype=np.uint8)
        for kind, array in zip(self._kind_of, arrays, strict=True):
            same = len(last) == len(array)
            neighbors = last if same else np.full(len(array), ABSENT, dtype=np.uint8)
            last, before = np.zeros(len(array), dtype=np.uint8), 0
            for start in range(0, len(array), _BLOCK):
                part = slice(start, start + _BLOCK)
                patterns = _to_patterns(array[part])
                coder = stream.coder(kind.contexts, len(patterns) * BYTES_AN_ELEMENT)
                before = pass_elements(
                    coder, kind.recent, kind.layout, patterns, neighbors[part], last[part], before
                )
                if before < 0:
                    raise FormatError(
                        place, "expected integers of their type's width, found a wider one"
                    )
                if not stream.writing:
                    array[part] = _from_patterns(patterns, array.dtype)

    def note_left_out(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Find, for each floating kind, the lowest mantissa bits that are 0 in all elements."""
        used = dict.fromkeys(self.floating, 0)
        for kind, array in zip(self._kind_of, arrays, strict=True):
            if kind.floating:
                used[kind] |= int(np.bitwise_or.reduce(_bits(array)))
        for kind, bits in used.items():
            bits |= 1 << kind.most_left_out
            kind.left_out = (bits & -bits).bit_length() - 1

    def read_left_out(self, data: bytes | memoryview, place: str) -> int:
        """Read the same from the start of a payload; return its bytes."""
        floating = self.floating
        if len(data) < len(floating):
            raise FormatError(place, f"expected at least {len(floating)} bytes, found {len(data)}")
        for kind, left_out in zip(floating, data, strict=False):
            if left_out > kind.most_left_out:
                raise FormatError(
                    place,
                    f"expected at most {kind.most_left_out} bits of {kind.stored} left out, "
                    f"found {left_out}",
                )
            kind.left_out = left_out
        return len(floating)

    def _kind(self, entry: DenseEntry) -> _Kind:
        """Return the kind of a tensor; when there are many, the rest share one per type."""
        key = (entry.stored, entry.name.rpartition(".")[2], len(entry.shape) > 1)
        if key not in self._kinds and len(self._kinds) >= _OWN_KINDS:
            key = (entry.stored, "", False)
        if key not in self._kinds:
            self._kinds[key] = _Kind(entry.stored)
        return self._kinds[key]


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    """Return the bit patterns of elements, as unsigned integers of their own size."""
    return array.view(f"<u{array.itemsize}")


def _to_patterns(array: NDArray[Any]) -> NDArray[np.uint64]:
    """Return bit patterns of floats; signed integers as 0, -1, 1, -2, 2, ... are numbered."""
    if array.dtype.kind == "i":
        wide = array.astype(np.int64)
        return ((wide << 1) ^ (wide >> 63)).view(np.uint64)
    return _bits(array).astype(np.uint64)


def _from_patterns(patterns: NDArray[np.uint64], element: np.dtype[Any]) -> NDArray[Any]:
    """Return elements from what `_to_patterns` makes of them."""
    if element.kind == "i":
        half = (patterns >> np.uint64(1)).view(np.int64)
        return (half ^ -(patterns & np.uint64(1)).view(np.int64)).astype(element)
    return patterns.astype(f"<u{element.itemsize}").view(element)
