"""Where a file's bytes come from: memory, a file on disk read at any place, or a stream."""

from __future__ import annotations

import errno
import os
import stat
import threading
import weakref
from typing import BinaryIO, Protocol

_PIECE = 1 << 20
OPEN_FLAGS = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_BINARY", "O_NOINHERIT"))
"""Bytes as they are (Windows), and not for processes that are started meanwhile."""

_MOST_AT_ONCE = 1 << 30  # Windows counts bytes to read in 32 bits


class Source(Protocol):
    """Bytes that can be read at any place."""

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """Return ``length`` bytes from ``offset``, or fewer where the source ends."""

    def extent(self, limit: int) -> int:
        """Return the source's size, where that is below ``limit``; else ``limit`` or more."""

    def close(self) -> None:
        """Let go of the source; reading afterwards is an error."""


class MemorySource:
    """Bytes in memory, which are not copied."""

    def __init__(self, data: bytes | bytearray | memoryview):
        self._view = memoryview(data).cast("B")

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """Return a view of the bytes."""
        return self._view[offset : offset + length]

    def extent(self, limit: int) -> int:
        """Return the number of bytes."""
        return len(self._view)

    def close(self) -> None:
        """Let go of the bytes."""
        self._view = memoryview(b"")


class FileSource:
    """A regular file, read where it is asked for; safe to use from several threads.

    The file stays open, so a ticket goes on reading the same file after another took its name.
    """

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._close = weakref.finalize(self, os.close, descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the file; the system may hand them out in several pieces."""
        if not self._close.alive:
            raise ValueError("read of a closed ticket; open the file again")
        pieces = []
        while length > 0:
            piece = self._read_some(length, offset)
            if not piece:
                break
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_some(self, length: int, offset: int) -> bytes:
        """Return some of the bytes from ``offset``; none at the end of the file."""
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, length, offset)
        with self._lock:  # Windows has one position for all threads
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            return os.read(self._descriptor, min(length, _MOST_AT_ONCE))

    def extent(self, limit: int) -> int:
        """Return the file's size as it is now."""
        return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        """Close the file."""
        self._close()


class StreamSource:
    """A stream that is read once, forwards, and kept; never further than it is asked for."""

    def __init__(self, stream: BinaryIO, *, owned: bool = False):
        self._stream = stream
        self._owned = owned
        self._kept = bytearray()
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the stream, reading on where they have not come yet."""
        with self._lock:
            self._fill(offset + length)
            return bytes(self._kept[offset : offset + length])

    def extent(self, limit: int) -> int:
        """Read on until the stream ends or ``limit`` bytes have come."""
        with self._lock:
            self._fill(limit)
            return len(self._kept)

    def close(self) -> None:
        """Let go of the bytes; a stream that the caller gave is the caller's to close."""
        self._kept = bytearray()
        if self._owned:
            self._stream.close()

    def _fill(self, size: int) -> None:
        """Read until ``size`` bytes are kept, in pieces: memory follows what has really come."""
        while len(self._kept) < size:
            piece = self._stream.read(min(_PIECE, size - len(self._kept)))
            if not piece:
                return
            self._kept += piece


class SeekableSource:
    """A file that can be read anywhere through a Python object, such as a temporary one."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the file."""
        with self._lock:
            self._file.seek(offset)
            return self._file.read(length)

    def extent(self, limit: int) -> int:
        """Return the file's size as it is now."""
        with self._lock:
            return self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Do nothing: the file is the caller's to close."""


def open_source(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | SeekableSource,
) -> Source:
    """Return where to read from: a path, the bytes themselves, a binary stream, or a source itself.

    A regular file is read in place; anything else that a path can name is read as a stream.

    Raises:
        OSError: the path cannot be opened.
        TypeError: none of these.
    """
    if isinstance(source, SeekableSource):
        return source
    if isinstance(source, bytes | bytearray | memoryview):
        return MemorySource(source)
    if not isinstance(source, str | os.PathLike):
        if hasattr(source, "read"):
            return StreamSource(source)
        raise TypeError(f"expected a path, bytes or a binary stream, found {type(source).__name__}")
    path = os.fspath(source)
    if os.path.isdir(path):  # which Windows would refuse to open, with another error
        raise IsADirectoryError(errno.EISDIR, "expected a .pabz file, found a directory", path)
    descriptor = os.open(path, os.O_RDONLY | OPEN_FLAGS)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return FileSource(descriptor)
    return StreamSource(os.fdopen(descriptor, "rb"), owned=True)
