"""The compiled heart of the ``adaptive`` encoding of dense sections (SPEC.md, section 4).

Encoding and decoding are one function, so that they cannot drift apart: a writer's elements are
passed through, a reader's are filled in.
"""

from __future__ import annotations

import numpy as np

from pabzip.formats.context.probabilities import HALF, adapt
from pabzip.formats.context.range_coder import decode_bit, encode_bit
from pabzip.seeds.compiled import compiled

MODELLED = 3
"""First bits of a tail that have contexts; the others are as good as random."""

FLAG_CONTEXTS = 12
"""Of a kind: two flags, each under three states of the neighbour and two of the element before."""

MEMORY = 20
"""A context's probability is the mean of about this many last bits: layers differ, so forget."""

LOW, SPAN, POSITION, END = range(4)
"""Places of the range coder's state."""

ABSENT = 2
"""State of the neighbour of an element that has none."""

BYTES_AN_ELEMENT = 40
"""Most bytes that one element takes: at most 18 bits of up to 11 each, and 64 plain ones."""

_ONE = np.uint64(1)


@compiled
def pass_elements(  # type: ignore[no-untyped-def]
    writing, state, data, chances, seen, recent, layout, elements, neighbours, known, before
):
    """Pass elements of one kind through the range coder.

    Args:
        writing: whether ``elements`` is given, or to be filled in.
        state: uint64[4], the range coder's; see `LOW`. Changed.
        data: uint8, the stream; a writer's has room for `BYTES_AN_ELEMENT` each.
        chances: uint32, the kind's adaptive probabilities: flags, then the tree. Changed.
        seen: int64, how many bits each of them has seen, up to `MEMORY`. Changed.
        recent: uint64[2], the kind's favourite and its last literal. Changed.
        layout: int64[4]: bits of the head, bits of a float's tail (0 for integers, whose heads
            give them), lowest bits of the tail that are 0 and left out, the largest head allowed.
        elements: uint64, bit patterns of floats, or integers of at least 0.
        neighbours: uint8, 1 where the element at the same place of the tensor before was
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
        flag = 2 * np.int64(neighbours[index]) + before
        favourite = 1 if value == recent[0] else 0
        low, span, position, favourite = _adaptive(
            writing, low, span, position, data, end, chances, seen, flag, favourite
        )
        before = 1
        if favourite:
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
            if place >= tail_bits - MODELLED:
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
