"""The first bytes: ours, or whose they look like."""

from __future__ import annotations

from pabzip.errors import FormatError

MAGIC = b"\x89PABZ\r\n\x1a"
"""A byte with the top bit set, the name, both line ends and a control-Z, so that a text-mode
transfer damages the magic before anything else is read (the habit comes from PNG)."""

_KNOWN = (
    (b"PK\x03\x04", "a zip archive, perhaps a PyTorch checkpoint; pack it with `pabzip pack`"),
    (b"\x1f\x8b", "gzip data; decompress it first"),
    (b"\xfd7zXZ\x00", "xz data; decompress it first"),
    (b"\x28\xb5\x2f\xfd", "Zstandard data; decompress it first"),
    (b"\x93NUMPY", "a numpy array"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
)


def check_magic(start: bytes) -> None:
    """Refuse a file that does not start with `MAGIC`, and say what it looks like.

    Args:
        start: the first bytes of the file, at least 16 where it has them.

    Raises:
        FormatError: an empty, cut or foreign file.
    """
    if start.startswith(MAGIC):
        return
    if not start:
        raise FormatError("magic", "expected a .pabz file, found an empty file")
    if MAGIC.startswith(start):
        raise FormatError("magic", f"expected a .pabz file, found it cut at {len(start)} bytes")
    raise FormatError("magic", f"expected a .pabz file, found {_looks_like(start)}")


def _looks_like(start: bytes) -> str:
    """Describe a file that is not ours; nothing of it is parsed."""
    for prefix, description in _KNOWN:
        if start.startswith(prefix):
            return description
    if start.startswith(b"\x89PABZ"):
        return "one that a text-mode transfer has damaged; transfer it as binary"
    if start[0] == 0x80 and start[1:2] and start[1] in range(2, 6):
        return "a Python pickle, which is never loaded"
    if start[8:9] == b"{":
        return "safetensors"
    if start[0] == 0x08 and start[2:3] in (b"\x12", b"\x3a", b"\x42"):
        return "an ONNX model"
    return f"the bytes {start[:8].hex(' ')}"
