"""A decoder of ternary tensors in plain Python, from SPEC.md alone, section 9; slow on purpose."""

from __future__ import annotations

import struct
from math import prod
from typing import Any


def symbols_of(row: list[Any], packed: bytes) -> list[int]:
    """The symbols of all weights, by SPEC.md alone."""
    _, shape, _, _, (layout, m, *_) = row
    count = prod(weights_shape(layout, shape))
    base = 3 if m == 5 else 4
    found = [byte // base**j % base for byte in packed for j in range(m)]
    assert not any(found[count:])
    return found[:count]


def weights_shape(layout: str, shape: list[int]) -> list[int]:
    if layout == "bitnet":
        return [4 * shape[0], *shape[1:]]
    block = {"tq1_0": 54, "tq2_0": 66}.get(layout)
    return [*shape[:-1], shape[-1] // block * 256] if block else list(shape)


def decode(row: list[Any], packed: bytes, scales: bytes) -> bytes:
    """The bytes of a ternary tensor as it was stored: slow, and from SPEC.md's text alone."""
    _, shape, dtype, _, (layout, _, _, scaling, *run) = row
    symbols = symbols_of(row, packed)
    codes = [{1: 1, 2: -1}.get(symbol, 0) for symbol in symbols]
    if layout == "bitnet":
        size = prod(shape)
        return bytes(sum((codes[k * size + p] + 1) << 2 * k for k in range(4)) for p in range(size))
    if layout != "plain":
        out = b""
        for block in range(len(codes) // 256):
            part = [code + 1 for code in codes[256 * block : 256 * block + 256]]
            if layout == "tq2_0":
                for h in range(2):
                    for j in range(32):
                        out += bytes([sum(part[128 * h + 32 * k + j] << 2 * k for k in range(4))])
            else:
                starts = [(j, 32, 5) for j in range(32)]
                starts += [(160 + j, 16, 5) for j in range(16)]
                starts += [(240 + j, 4, 4) for j in range(4)]
                for first, step, digits in starts:
                    v = sum(part[first + k * step] * 3 ** (4 - k) for k in range(digits))
                    out += bytes([-(-256 * v // 243)])
            out += scales[2 * block : 2 * block + 2]
        return out
    if dtype == "int8":
        return b"".join(struct.pack("b", code) for code in codes)
    size = 4 if dtype == "float32" else 2
    out = b""
    for i, symbol in enumerate(symbols):
        at = i // run[0] if scaling == "runs" else i % shape[-1]
        bits = int.from_bytes(scales[at * size : (at + 1) * size], "little")
        bits = (0 if symbol in (0, 3) else bits) | (symbol >> 1) << (8 * size - 1)
        out += bits.to_bytes(size, "little")
    return out


def members(row: list[Any]) -> list[list[Any]]:
    """The rows of the dense tensors that hold a ternary one."""
    name, shape, dtype, _, (layout, m, _, scaling, *run) = row
    count = prod(weights_shape(layout, shape))
    found = [[name, [-(-count // m)], "uint8"]]
    if scaling in ("runs", "columns"):
        number = count // run[0] if run else shape[-1]
        found.append([name, [number], dtype if layout == "plain" else "float16"])
    return found
