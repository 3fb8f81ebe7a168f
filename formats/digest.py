"""The digest of a state: SHA-256 over names, dtypes, shapes and elements, in the order of the file.

Source: formats/SPEC.md, section "The digest".
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pabzip.formats.contents import StoredTensor

_PIECE = 8 << 20  # bytes that are hashed at a time


class StateDigest:
    """The SHA-256 of a state, which takes its tensors one at a time.

    For each tensor in order the hash takes: the name's length in UTF-8 bytes (uint32), the name,
    the length of the dtype's name (uint8), the dtype's name, the number of dimensions (uint8),
    each dimension (uint64), and the elements in row-major order. Integers and elements are
    little-endian; a boolean is one byte; a seeded tensor has dtype ``float32``.

    Args:
        seed: the ticket's seed.
        backend: of `pabzip.seeds.regenerate`; every backend gives the same digest.
        threads: likewise.
        on_bytes: called with the number of bytes of each piece once it is hashed.

    Source: formats/SPEC.md, section "The digest".
    """

    def __init__(
        self,
        seed: int,
        *,
        backend: str = "numba",
        threads: int | None = None,
        on_bytes: Callable[[int], object] | None = None,
    ):
        self._seed, self._backend, self._threads = seed, backend, threads
        self._on_bytes = on_bytes
        self._hash = hashlib.sha256()

    def add(self, tensor: StoredTensor) -> None:
        """Take the next tensor; a tied one resolved (`pabzip.formats.resolve`)."""
        name, dtype = tensor.name.encode("utf-8"), tensor.dtype.encode("ascii")
        self._hash.update(struct.pack("<I", len(name)) + name)
        self._hash.update(struct.pack("<B", len(dtype)) + dtype)
        self._hash.update(struct.pack(f"<B{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape))
        for part in tensor.elements(self._seed, backend=self._backend, threads=self._threads):
            data = part.view("u1").data
            for start in range(0, len(data), _PIECE):
                piece = data[start : start + _PIECE]
                self._hash.update(piece)
                if self._on_bytes is not None:
                    self._on_bytes(len(piece))

    def hexdigest(self) -> str:
        """Return the digest of the tensors so far, as 64 hexadecimal digits."""
        return self._hash.hexdigest()


def state_sha256(
    seed: int,
    tensors: Iterable[StoredTensor],
    *,
    backend: str = "numba",
    threads: int | None = None,
) -> str:
    """Return the `StateDigest` of tensors in the order of the ticket, read one at a time.

    Ties are resolved (`pabzip.formats.resolved`); the other arguments are those of `StateDigest`.
    """
    state = StateDigest(seed, backend=backend, threads=threads)
    for tensor in tensors:
        state.add(tensor)
        del tensor  # before the next is read
    return state.hexdigest()
