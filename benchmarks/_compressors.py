"""General compressors at their strongest, the forms they get codes in, and entropies."""

from __future__ import annotations

import lzma
from collections.abc import Callable, Mapping

import brotli
import numpy as np
import zstandard
from numpy.typing import NDArray

from pabzip.seeds import pack_codes

Codes = Mapping[str, NDArray[np.int8]]

_ZSTD_WINDOW = 27  # 128 MiB: longer than any network here


def _zstd(data: bytes) -> bytes:
    """Compress with level 19 and long-distance matching."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        19, window_log=_ZSTD_WINDOW, enable_ldm=True
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def _xz(data: bytes) -> bytes:
    """Compress with ``xz -9e``."""
    return lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)


def _brotli(data: bytes) -> bytes:
    """Compress with quality 11 and the largest plain window."""
    return bytes(brotli.compress(data, quality=11, lgwin=24))


COMPRESSORS: Mapping[str, Callable[[bytes], bytes]] = {
    "zstd -19 --long": _zstd,
    "xz -9e": _xz,
    "brotli 11": _brotli,
}


def forms(codes: Codes) -> dict[str, bytes]:
    """Return all codes of a network, one tensor after the other, in each form."""
    flat = np.concatenate([held.reshape(-1) for held in codes.values()])
    return {
        "2-bit": pack_codes(flat).tobytes(),
        "base-3": _base3(flat),
        "bitmap": np.packbits(flat != 0).tobytes() + np.packbits(flat[flat != 0] < 0).tobytes(),
    }


def mask_entropy(codes: Codes) -> float:
    """Return the bytes of the mask by its density alone, each tensor with its own."""
    return sum(entropy(int(np.count_nonzero(held)), held.size) for held in codes.values()) / 8


def sign_entropy(codes: Codes) -> float:
    """Return the bytes of the survivors' signs by the share that is flipped."""
    survivors = sum(int(np.count_nonzero(held)) for held in codes.values())
    flipped = sum(int(np.count_nonzero(held < 0)) for held in codes.values())
    return entropy(flipped, survivors) / 8


def entropy(ones: int, count: int) -> float:
    """Return the bits of ``count`` independent bits, ``ones`` of which are 1."""
    if ones in (0, count):
        return 0.0
    share = ones / count
    return float(-count * (share * np.log2(share) + (1 - share) * np.log2(1 - share)))


def _base3(codes: NDArray[np.int8]) -> bytes:
    """Return five codes a byte."""
    padded = np.zeros(-(-codes.size // 5) * 5, dtype=np.uint8)
    padded[: codes.size] = codes % 3
    digits = padded.reshape(-1, 5)
    return (digits @ np.array([1, 3, 9, 27, 81], dtype=np.uint8)).astype(np.uint8).tobytes()
