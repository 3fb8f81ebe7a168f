"""A decoder of ``adaptive`` dense sections in plain Python, from SPEC.md, section 4, alone."""

from __future__ import annotations

import math
from typing import Any

FLOATS = {"float64": (11, 52), "float32": (8, 23), "float16": (5, 10), "bfloat16": (8, 7)}
WIDTHS = {
    "float64": 64, "float32": 32, "float16": 16, "bfloat16": 16,
    "int64": 64, "int32": 32, "int16": 16, "int8": 8, "uint8": 8, "bool": 8,
}  # fmt: skip


class Bits:
    """The range decoder."""

    def __init__(self, stream: bytes):
        self.stream, self.place, self.span = stream, 4, 2**32 - 1
        self.code = int.from_bytes((stream + bytes(4))[:4], "big")

    def take(self, chance: int) -> int:
        bound = self.span // 65536 * chance
        bit = int(self.code < bound)
        if bit:
            self.span = bound
        else:
            self.code -= bound
            self.span -= bound
        while self.span < 2**24:
            byte = self.stream[self.place] if self.place < len(self.stream) else 0
            self.span, self.code, self.place = (
                self.span * 256,
                self.code * 256 + byte,
                self.place + 1,
            )
        return bit


class Kind:
    """What is kept for one kind of tensor."""

    def __init__(self, stored: str):
        self.stored, self.favorite, self.latest, self.left_out = stored, 0, 0, 0
        self.contexts: dict[int, tuple[int, int]] = {}

    def take(self, bits: Bits, context: int) -> int:
        chance, count = self.contexts.get(context, (32768, 0))
        bit = bits.take(chance)
        chance += (65536 * bit - chance) * (131072 // (2 * count + 3)) // 65536
        self.contexts[context] = (min(max(chance, 64), 65472), min(count + 1, 20))
        return bit

    def spelt_out(self, bits: Bits) -> int:
        floating = self.stored in FLOATS
        width = WIDTHS[self.stored]
        size = FLOATS[self.stored][0] if floating else width.bit_length()
        node = 1
        for _ in range(size):
            node = 2 * node + self.take(bits, 12 + node)
        head = node - 2**size
        assert floating or head <= width
        tail_size = 1 + FLOATS[self.stored][1] if floating else max(head - 1, 0)
        tail = 0
        for place in range(tail_size):
            if tail_size - place <= self.left_out:
                bit = 0
            elif place < 3:
                bit = self.take(bits, 12 + node)
                node = 2 * node + bit
            else:
                bit = bits.take(32768)
            tail = 2 * tail + bit
        if not floating:
            return 2 ** (head - 1) + tail if head else 0
        mantissa = FLOATS[self.stored][1]
        return (tail >> mantissa) << (width - 1) | head << mantissa | tail % 2**mantissa


def decode(rows: list[list[Any]], payload: bytes) -> dict[str, bytes]:
    """Return the bytes of each tensor of a section, as stored, from its header rows."""
    kinds: dict[tuple[str, str, bool], Kind] = {}
    of = []
    for name, shape, *types in rows:
        key = (types[-1], name.split(".")[-1], len(shape) > 1)
        if key not in kinds and len(kinds) >= 32:
            key = (types[-1], "", False)
        of.append(kinds.setdefault(key, Kind(types[-1])))
    floating = [kind for kind in kinds.values() if kind.stored in FLOATS]
    for kind, kind.left_out in zip(floating, payload, strict=False):
        assert kind.left_out <= FLOATS[kind.stored][1] - 2
    bits = Bits(payload[len(floating) :])
    found, known = {}, []
    for (name, shape, *_), kind in zip(rows, of, strict=True):
        count = math.prod(shape)
        neighbors = known if len(known) == count else [2] * count
        known, patterns = [], []
        for neighbor in neighbors:
            context = 2 * neighbor + (known[-1] if known else 0)
            if kind.take(bits, context):
                known.append(1)
            elif kind.take(bits, 6 + context):
                kind.favorite, kind.latest = kind.latest, kind.favorite
                known.append(1)
            else:
                kind.latest = kind.spelt_out(bits)
                patterns.append(kind.latest)
                known.append(0)
                continue
            patterns.append(kind.favorite)
        if kind.stored.startswith("int"):
            mask = 2 ** WIDTHS[kind.stored] - 1
            patterns = [(p >> 1 ^ -(p & 1)) & mask for p in patterns]
        size = WIDTHS[kind.stored] // 8
        found[name] = b"".join(pattern.to_bytes(size, "little") for pattern in patterns)
    assert bits.place >= len(bits.stream)
    return found
