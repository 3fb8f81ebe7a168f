"""The `adaptive` encoding of dense tensors: a range coder whose probabilities follow the data.

Encoding and decoding are one function, so that they cannot drift apart: a writer's elements are
passed through, a reader's are filled in.

Batch norm decides the sizes that matter. Of its vectors the low mantissa bits are noise, which
nothing compresses; what a model can save are the exponents, the values that repeat (every empty
channel has the same scale, mean and variance) and where they repeat (in the channels where they
did in the vector before). SPEC.md, section 4, states every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.formats.context.model import HALF, adapt
from pabzip.formats.context.range_coder import (
    FLUSH_BYTES,
    decode_bit,
    encode_bit,
    finish,
    start_decoding,
    with_room,
)
from pabzip.formats.dense import DenseEntry
from pabzip.formats.limits import DENSE_TYPES
from pabzip.seeds.compiled import compiled

MODELED = 3
"""First bits of a tail that have contexts; the others are as good as random."""

FLAG_CONTEXTS = 12
"""Of a kind: two flags, each under three states of the neighbor and two of the element before."""

MEMORY = 20
"""A context's probability is the mean of about this many last bits: layers differ, so forget."""

LOW, SPAN, POSITION, END = range(4)
"""Places of the range coder's state."""

ABSENT = 2
"""State of the neighbor of an element that has none."""

BYTES_AN_ELEMENT = 40
"""Most bytes that one element takes: at most 18 bits of up to 11 each, and 64 plain ones."""

_ONE = np.uint64(1)


@compiled
def pass_elements(  # type: ignore[no-untyped-def]
    writing, state, data, chances, seen, recent, layout, elements, neighbors, known, before
):
    """Pass elements of one kind through the range coder.

    Args:
        writing: whether ``elements`` is given, or to be filled in.
        state: uint64[4], the range coder's; see `LOW`. Changed.
        data: uint8, the stream; a writer's has room for `BYTES_AN_ELEMENT` each.
        chances: uint32, the kind's adaptive probabilities: flags, then the tree. Changed.
        seen: int64, how many bits each of them has seen, up to `MEMORY`. Changed.
        recent: uint64[2], the kind's favorite and its last literal. Changed.
        layout: int64[4]: bits of the head, bits of a float's tail (0 for integers, whose heads
            give them), lowest bits of the tail that are 0 and left out, the largest head allowed.
        elements: uint64, bit patterns of floats, or integers of at least 0.
        neighbors: uint8, 1 where the element at the same place of the tensor before was
            recent, 0 where it was not, `ABSENT`.
        known: uint8, where the same of these elements is written.
        before: whether the element before the first was recent.

    Returns:
        Whether the last element was recent (0 or 1); -1 where a stream to be read is not valid.
    """
    low, span = state[LOW], state[SPAN]
    position, end = np.int64(state[POSITION]), np.int64(state[END])
    head_bits, float_tail, left_out, largest = layout[0], layout[1], layout[2], layout[3]
    for index in range(len(elements)):
        value = elements[index]
        flag = 2 * np.int64(neighbors[index]) + before
        favorite = 1 if value == recent[0] else 0
        low, span, position, favorite = _adaptive(
            writing, low, span, position, data, end, chances, seen, flag, favorite
        )
        before = 1
        if favorite:
            elements[index] = recent[0]
            known[index] = before
            continue
        repeated = 1 if value == recent[1] else 0
        flag += FLAG_CONTEXTS // 2
        low, span, position, repeated = _adaptive(
            writing, low, span, position, data, end, chances, seen, flag, repeated
        )
        if repeated:
            value = recent[1]
            recent[1] = recent[0]
            recent[0] = value
            elements[index] = value
            known[index] = before
            continue
        before = 0
        known[index] = before
        head, tail, tail_bits = _split(value, head_bits, float_tail)
        node = 1
        for place in range(head_bits):
            bit = (head >> (head_bits - 1 - place)) & 1
            low, span, position, bit = _adaptive(
                writing, low, span, position, data, end, chances, seen, FLAG_CONTEXTS + node, bit
            )
            node = 2 * node + bit
        if not writing:
            head, tail = node - (1 << head_bits), np.uint64(0)
            if head > largest:
                return -1
            tail_bits = float_tail if float_tail else max(head - 1, 0)
        for place in range(tail_bits - 1, left_out - 1, -1):
            bit = np.int64((tail >> np.uint64(place)) & _ONE)
            if place >= tail_bits - MODELED:
                low, span, position, bit = _adaptive(
                    writing, low, span, position, data, end,
                    chances, seen, FLAG_CONTEXTS + node, bit,
                )  # fmt: skip
                node = 2 * node + bit
            else:
                low, span, position, bit = _fixed(
                    writing, low, span, position, data, end, bit, np.uint32(HALF)
                )
            if not writing:
                tail |= np.uint64(bit) << np.uint64(place)
        value = _join(head, tail, head_bits, float_tail)
        elements[index] = value
        recent[1] = value
    state[LOW], state[SPAN], state[POSITION] = low, span, np.uint64(position)
    return before


@compiled
def _fixed(writing, low, span, position, data, end, bit, chance):  # type: ignore[no-untyped-def]
    """Pass one bit under a fixed probability."""
    if writing:
        low, span, position = encode_bit(low, span, position, data, bit, chance)
        return low, span, position, bit
    return decode_bit(low, span, position, data, end, chance)


@compiled
def _adaptive(writing, low, span, position, data, end, chances, seen, context, bit):  # type: ignore[no-untyped-def]
    """Pass one bit under a context, and let the context learn it."""
    chance = chances[context]
    low, span, position, bit = _fixed(writing, low, span, position, data, end, bit, chance)
    chances[context] = adapt(chance, seen[context], bit)
    seen[context] = min(seen[context] + 1, MEMORY)
    return low, span, position, bit


@compiled
def _split(value, head_bits, float_tail):  # type: ignore[no-untyped-def]
    """Return an element's head, its tail, and the bits of the tail."""
    if float_tail:
        mantissa_bits = np.uint64(float_tail - 1)
        mantissa = value & ((_ONE << mantissa_bits) - _ONE)
        head = np.int64((value >> mantissa_bits) & ((_ONE << np.uint64(head_bits)) - _ONE))
        sign = value >> np.uint64(head_bits + float_tail - 1)
        return head, (sign << mantissa_bits) | mantissa, np.int64(float_tail)
    head = np.int64(0)
    while head < 64 and value >> np.uint64(head):
        head += 1
    tail_bits = head - 1 if head else np.int64(0)
    return head, value & ((_ONE << np.uint64(tail_bits)) - _ONE), tail_bits


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
_BLOCK = 4096
_ROOM = _BLOCK * BYTES_AN_ELEMENT + FLUSH_BYTES  # for one more block and the end of the stream
_FULL_SPAN = 0xFFFFFFFF

_Key = tuple[str, str, bool]


def encode_adaptive(entries: Sequence[DenseEntry], arrays: Sequence[NDArray[Any]]) -> bytes:
    """Return the payload of a section.

    Args:
        entries: its tensors, in order.
        arrays: their elements as stored, of any shape.
    """
    flat = [array.reshape(-1) for array in arrays]
    model = _Model(entries)
    model.note_left_out(flat)
    data = np.array([kind.left_out for kind in model.floating], dtype=np.uint8)
    start = len(data)
    state = np.zeros(4, dtype=np.uint64)
    state[SPAN], state[POSITION] = _FULL_SPAN, start
    for block in model.blocks():
        data = with_room(data, int(state[POSITION]) + _ROOM)
        block.run(True, state, data, _to_patterns(flat[block.tensor][block.part]))
    data = with_room(data, int(state[POSITION]) + _ROOM)
    stop = finish(state[LOW], state[SPAN], int(state[POSITION]), data, start)
    return data[:stop].tobytes()


def decode_adaptive(
    entries: Sequence[DenseEntry], payload: bytes | memoryview, place: str
) -> list[NDArray[Any]]:
    """Return the elements of a section's tensors, as stored, in one dimension.

    Raises:
        FormatError: the payload is not exactly one section of these tensors.
    """
    data = np.frombuffer(payload, dtype=np.uint8).copy()  # kernels want arrays they could write
    model = _Model(entries)
    start = model.read_left_out(data, place)
    state = np.zeros(4, dtype=np.uint64)
    state[:3] = start_decoding(data, start, len(data))
    state[END] = len(data)
    arrays = [np.zeros(entry.count, DENSE_TYPES[entry.stored].numpy) for entry in entries]
    for block in model.blocks():
        patterns = np.zeros(block.part.stop - block.part.start, dtype=np.uint64)
        if not block.run(False, state, data, patterns):
            raise FormatError(place, "expected integers of their type's width, found a wider one")
        part = arrays[block.tensor][block.part]
        part[:] = _from_patterns(patterns, part.dtype)
    if int(state[POSITION]) < len(data) or (len(data) > start and not data[-1]):
        raise FormatError(
            place,
            f"expected a stream of at most {int(state[POSITION])} bytes without zeros at its end, "
            f"found {len(data)} bytes",
        )
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
        self.chances = np.full(contexts, HALF, dtype=np.uint32)
        self.seen = np.zeros(contexts, dtype=np.int64)
        self.recent = np.zeros(2, dtype=np.uint64)

    @property
    def layout(self) -> NDArray[np.int64]:
        """What `pass_elements` must know of an element."""
        return np.array([self.head_bits, self.tail_bits, self.left_out, self.largest], np.int64)

    @property
    def most_left_out(self) -> int:
        """Most bits that may be left out: those without contexts."""
        return self.tail_bits - MODELED


@dataclass(slots=True, eq=False)
class _Block:
    """Neighboring elements of one tensor, few enough for a bounded buffer."""

    tensor: int
    part: slice
    kind: _Kind
    neighbors: NDArray[np.uint8]
    known: NDArray[np.uint8]
    before: int

    def run(
        self,
        writing: bool,
        state: NDArray[np.uint64],
        data: NDArray[np.uint8],
        patterns: NDArray[np.uint64],
    ) -> bool:
        """Pass the elements; return False where a stream to be read is not valid."""
        kind = self.kind
        self.before = pass_elements(
            writing, state, data, kind.chances, kind.seen, kind.recent, kind.layout,
            patterns, self.neighbors, self.known, self.before,
        )  # fmt: skip
        return self.before >= 0


class _Model:
    """The kinds of a section's tensors, and the order in which elements pass."""

    def __init__(self, entries: Sequence[DenseEntry]):
        self._kinds: dict[_Key, _Kind] = {}
        self._tensors = [(self._kind(entry), entry.count) for entry in entries]

    @property
    def floating(self) -> Sequence[_Kind]:
        """The kinds of floating types, by first appearance."""
        return [kind for kind in self._kinds.values() if kind.floating]

    def blocks(self) -> Iterator[_Block]:
        """Yield the elements of all tensors; each block must be run before the next is taken."""
        last = np.zeros(0, dtype=np.uint8)
        for tensor, (kind, count) in enumerate(self._tensors):
            same = len(last) == count
            neighbors = last if same else np.full(count, ABSENT, dtype=np.uint8)
            last, before = np.zeros(count, dtype=np.uint8), 0
            for start in range(0, count, _BLOCK):
                part = slice(start, min(start + _BLOCK, count))
                block = _Block(tensor, part, kind, neighbors[part], last[part], before)
                yield block
                before = block.before

    def note_left_out(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Find, for each floating kind, the lowest mantissa bits that are 0 in all elements."""
        used = dict.fromkeys(self.floating, 0)
        for (kind, _), array in zip(self._tensors, arrays, strict=True):
            if kind.floating:
                used[kind] |= int(np.bitwise_or.reduce(_bits(array)))
        for kind, bits in used.items():
            bits |= 1 << kind.most_left_out
            kind.left_out = (bits & -bits).bit_length() - 1

    def read_left_out(self, data: NDArray[np.uint8], place: str) -> int:
        """Read the same from the start of a payload; return its bytes."""
        floating = self.floating
        if len(data) < len(floating):
            raise FormatError(place, f"expected at least {len(floating)} bytes, found {len(data)}")
        for kind, left_out in zip(floating, data.tolist(), strict=False):
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
