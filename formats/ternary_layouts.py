"""The layouts that ternary tensors are published in, by name, and what these have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

INFINITY_BITS = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}
"""Bit pattern of infinity of each floating type; those of all numbers from +0.0 are below it."""

FLOATS = tuple(INFINITY_BITS)
"""Element types of weights that are 0 and plus or minus a scale."""

BLOCK = 256
"""Weights of one block of llama.cpp's layouts."""

SCALE_SUFFIX = "_scale"
"""The scale of a tensor in transformers' layout is the tensor called as it is, with this added."""


class Layout(NamedTuple):
    """How weights are stored.

    Attributes:
        scalings: what they may be scaled by, for each element type of the tensor.
        block_bytes: of a block of `BLOCK` weights; 0 where there are none.
    """

    scalings: Mapping[str, tuple[str, ...]]
    block_bytes: int = 0


LAYOUTS = {
    "plain": Layout({**dict.fromkeys(FLOATS, ("runs", "columns")), "int8": ("none",)}),
    "bitnet": Layout({"uint8": ("none", "divide", "multiply")}),
    "tq1_0": Layout({"uint8": ("runs",)}, 54),
    "tq2_0": Layout({"uint8": ("runs",)}, 66),
}
"""The layouts by name: one element a weight; transformers' planes of bit pairs, four a byte; and
llama.cpp's blocks, 54 or 66 bytes for 256 weights."""


def packed_size(count: int, per_byte: int = 5) -> int:
    """Return the bytes that so many codes take, ``per_byte`` in each."""
    return -(-count // per_byte)
