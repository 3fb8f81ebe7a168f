"""Deflate streams whose inflated size is known: never a byte more is made of one."""

from __future__ import annotations

import zlib

from pabzip.errors import FormatError


def deflate(data: bytes) -> bytes:
    """Return ``data`` as a raw deflate stream (RFC 1951), as small as zlib makes it."""
    return zlib.compress(data, 9, -zlib.MAX_WBITS)


def inflate(payload: bytes | memoryview, size: int, place: str) -> bytes:
    """Return exactly ``size`` bytes from a raw deflate stream that ends with the payload.

    Raises:
        FormatError: the stream is damaged, or holds fewer or more bytes, or something follows it.
    """
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = stream.decompress(payload, size + 1)  # one more, to see a stream that goes on
    except zlib.error as error:
        raise FormatError(place, f"expected a deflate stream, found a fault: {error}") from None
    if len(data) != size or not stream.eof:
        found = "more" if len(data) > size else f"{len(data)} bytes, or no end"
        raise FormatError(place, f"expected {size} bytes once inflated, found {found}")
    if stream.unused_data:
        raise FormatError(
            place,
            f"expected the deflate stream to end the section, found "
            f"{len(stream.unused_data)} bytes after it",
        )
    return data
