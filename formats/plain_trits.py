"""Plain numpy in place of the loops of `pabzip.formats.trits`: slow, and written independently.

Each function does what the one of its name there does, from SPEC.md, by whole arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_FIRST_FIVE = 3 ** np.arange(4, -1, -1)  # TQ1_0: the first of five digits counts most


def _symbols(packed: NDArray[np.uint8], per_byte: int, start: int, count: int) -> NDArray[np.int64]:
    """Return the symbols of weights ``start`` onwards."""
    base = 3 if per_byte == 5 else 4
    byte, digit = np.divmod(np.arange(start, start + count), per_byte)
    return np.asarray(packed[byte] // base**digit % base, dtype=np.int64)


def unpack_codes(
    packed: NDArray[np.uint8], per_byte: int, start: int, codes: NDArray[np.int8]
) -> None:
    """Write the codes of weights ``start`` onwards: int8; that of -0.0 is 0."""
    codes[:] = np.array([0, 1, -1, 0])[_symbols(packed, per_byte, start, codes.size)]


def unpack_floats(
    packed: NDArray[np.uint8],
    per_byte: int,
    scales: NDArray[Any],
    run: int,
    sign: int,
    start: int,
    out: NDArray[Any],
) -> None:
    """Write weights ``start`` onwards, each 0 or its scale with the sign of its code."""
    symbols = _symbols(packed, per_byte, start, out.size)
    places = np.arange(start, start + out.size)
    own = scales[places // run if run else places % scales.size]
    out[:] = np.where((symbols == 1) | (symbols == 2), own, 0)
    out[symbols >= 2] |= out.dtype.type(sign)


def unpack_planes(packed: NDArray[np.uint8], size: int, start: int, out: NDArray[np.uint8]) -> None:
    """Write bytes ``start`` onwards of transformers' layout, four planes of ``size`` bit pairs."""
    planes = [_symbols(packed, 5, plane * size + start, out.size) for plane in range(4)]
    out[:] = sum((symbols + 1) % 3 << 2 * plane for plane, symbols in enumerate(planes))


def unpack_blocks(
    packed: NDArray[np.uint8],
    ternary: bool,
    scales: NDArray[np.uint16],
    start: int,
    blocks: NDArray[np.uint8],
) -> None:
    """Write the blocks ``start`` onwards of TQ1_0 (``ternary``) or TQ2_0."""
    count = len(blocks)
    digits = (_symbols(packed, 5, 256 * start, 256 * count).reshape(count, 256) + 1) % 3
    if ternary:
        groups = [
            digits[:, :160].reshape(count, 5, 32),
            digits[:, 160:240].reshape(count, 5, 16),
            np.pad(digits[:, 240:].reshape(count, 4, 4), ((0, 0), (0, 1), (0, 0))),
        ]
        values = np.einsum("ndb,d->nb", np.concatenate(groups, axis=2), _FIRST_FIVE)
        blocks[:, :-2] = (values * 256 + 242) // 243
    else:
        pairs = digits.reshape(count, 2, 4, 32) << np.arange(0, 8, 2)[:, None]
        blocks[:, :-2] = pairs.sum(axis=2).reshape(count, 64)
    own = scales[start : start + count]
    blocks[:, -2], blocks[:, -1] = own & 255, own >> 8
