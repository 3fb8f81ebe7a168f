"""Pack codes at two bits each, as they are sent to a GPU, which unpacks them itself.

Four codes make a byte, the first in the lowest two bits: 0 is ``00``, +1 is ``01``, -1 is ``11``.
One byte therefore holds the codes of exactly one Philox block. Unused bits of the last byte are 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import SeedError

CODES_PER_BYTE = 4


def pack_codes(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack codes at two bits each.

    Args:
        codes: int8, any shape, values 0, +1 and -1; taken in row-major order.

    Returns:
        uint8, shape ``(ceil(codes.size / 4),)``.

    Raises:
        SeedError: another dtype or other values.
    """
    if codes.dtype != np.int8:
        raise SeedError(f"codes: expected an int8 array, found {codes.dtype}")
    flat = np.ascontiguousarray(codes).reshape(-1)
    if flat.size and (flat.min() < -1 or flat.max() > 1):
        count = np.count_nonzero((flat < -1) | (flat > 1))
        raise SeedError(f"codes: expected only 0, +1 and -1, found {count} other values")
    padding = -flat.size % CODES_PER_BYTE
    if padding:
        flat = np.concatenate((flat, np.zeros(padding, dtype=np.int8)))
    # Two's complement makes the low two bits of a code its packed form; four codes are one word.
    fours = flat.view("<u4") & np.uint32(0x03030303)
    fours |= fours >> np.uint32(6)
    fours |= fours >> np.uint32(12)
    return fours.astype(np.uint8)


def unpack_codes(packed: NDArray[np.uint8], count: int) -> NDArray[np.int8]:
    """Undo `pack_codes`.

    Args:
        packed: uint8, shape ``(ceil(count / 4),)``.
        count: number of codes.

    Returns:
        int8, shape ``(count,)``, values 0, +1 and -1.

    Raises:
        SeedError: a wrong number of bytes, the unused bit pattern ``10``, or padding that is not 0.
    """
    if packed.dtype != np.uint8 or packed.ndim != 1 or count < 0:
        raise SeedError(
            f"packed codes: expected a one-dimensional uint8 array and a count of at least 0, "
            f"found {packed.dtype} of shape {packed.shape} and {count}"
        )
    expected = -(-count // CODES_PER_BYTE)
    if packed.size != expected:
        raise SeedError(
            f"packed codes: expected {expected} bytes for {count} codes, found {packed.size}"
        )
    if np.any((packed & 0xAA) & ~((packed & 0x55) << 1)):
        raise SeedError("packed codes: expected 00, 01 and 11, found the unused pattern 10")
    patterns = packed[:, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3
    values = np.array([0, 1, 0, -1], dtype=np.int8)
    codes: NDArray[np.int8] = values[patterns].reshape(-1)
    if np.any(codes[count:]):
        raise SeedError("packed codes: expected zeros after the last code, found others")
    return codes[:count]
