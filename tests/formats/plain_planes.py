"""A decoder of ``planes`` dense sections in plain Python, from SPEC.md, section 4, alone."""

from __future__ import annotations

import math
from typing import Any

EXPONENTS = {"float64": 11, "float32": 8, "float16": 5, "bfloat16": 8}
WIDTHS = {
    "float64": 64, "float32": 32, "float16": 16, "bfloat16": 16,
    "int64": 64, "int32": 32, "int16": 16, "int8": 8, "uint8": 8, "bool": 8,
}  # fmt: skip


class Bytes:
    """A payload that is read from its start to its end."""

    def __init__(self, data: bytes):
        self.data = data

    def take(self, size: int) -> bytes:
        assert len(self.data) >= size
        found, self.data = self.data[:size], self.data[size:]
        return found

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")


def decode_stream(stream: Bytes, count: int) -> bytes:
    """Return what a stream of rANS holds."""
    table: list[int] = []
    while sum(table) < 32768:
        first = stream.number(1)
        if first == 0:
            table += [0] * (stream.number(1) + 1)
        elif first < 128:
            table.append(first)
        else:
            table.append(256 * (first - 128) + stream.number(1) + 128)
    assert sum(table) == 32768
    assert len(table) <= 256
    starts = [sum(table[:symbol]) for symbol in range(len(table))]
    symbols = [symbol for symbol, frequency in enumerate(table) for _ in range(frequency)]
    states = [stream.number(8) for _ in range(4)]
    assert all(2**31 <= state < 2**63 for state in states)
    found = bytearray()
    for at in range(count):
        state = states[at % 4]
        rest = state % 32768
        symbol = symbols[rest]
        state = table[symbol] * (state // 32768) + rest - starts[symbol]
        if state < 2**31:
            state = 2**32 * state + stream.number(4)
        states[at % 4] = state
        found.append(symbol)
    assert states == [2**31] * 4
    assert not stream.data
    return bytes(found)


def element(stored: str, number: int) -> int:
    """Return the bit pattern of an element from the number that its planes make."""
    width = WIDTHS[stored]
    if stored in EXPONENTS:
        mantissa = width - 1 - EXPONENTS[stored]
        exponent, rest = number >> (mantissa + 1), number % 2 ** (mantissa + 1)
        if stored == "float64":
            exponent = exponent % 8 * 256 + exponent // 8
        sign = rest >> mantissa
        return sign << (width - 1) | exponent << mantissa | rest % 2**mantissa
    if stored.startswith("int") and width > 8:
        return (number // 2 if number % 2 == 0 else -(number + 1) // 2) % 2**width
    return number


def decode(rows: list[list[Any]], payload: bytes) -> dict[str, bytes]:
    """Return the bytes of each tensor of a section, as stored, from its header rows."""
    data = Bytes(payload)
    chunk = data.number(1)
    assert 16 <= chunk <= 20
    elements: dict[str, bytes] = {}
    for stored in dict.fromkeys(row[-1] for row in rows):
        members = [row for row in rows if row[-1] == stored]
        left, size, values = sum(math.prod(row[1]) for row in members), WIDTHS[stored] // 8, b""
        while left:
            count = min(left, 2**chunk)
            left -= count
            planes = []
            for _ in range(size):
                kind = data.number(1)
                assert kind in (0, 1, 2)
                if kind == 0:
                    planes.append(data.take(count))
                elif kind == 1:
                    planes.append(data.take(1) * count)
                else:
                    planes.append(decode_stream(Bytes(data.take(data.number(4))), count))
            values += b"".join(
                element(stored, int.from_bytes(bytes(each), "little")).to_bytes(size, "little")
                for each in zip(*planes, strict=True)
            )
        for row in members:
            length = math.prod(row[1]) * size
            elements[row[0]], values = values[:length], values[length:]
    assert not data.data
    return elements
