"""The digest of a state: SHA-256 over names, dtypes, shapes and elements, in the order of the file.

Source: formats/SPEC.md, section "The digest".
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pabzip.formats.contents import StoredTensor


class StateDigest:
    """The SHA-256 of a state, tensor by tensor.

    For each tensor the hash takes: the name's length in UTF-8 bytes (uint32), the name, the length
    of the dtype's name (uint8), the dtype's name, the number of dimensions (uint8), each dimension
    (uint64), and the elements in row-major order. Integers and elements are little-endian; a
    boolean is one byte; a seeded tensor has dtype ``float32``.
    """

    def __init__(self) -> None:
        self._state = hashlib.sha256()

    def add(
        self, tensor: StoredTensor, seed: int, *, backend: str = "numba", threads: int | None = None
    ) -> None:
        """Take the next tensor of the state; arguments as for `state_sha256`."""
        state = self._state
        name, dtype = tensor.name.encode("utf-8"), tensor.dtype.encode("ascii")
        state.update(struct.pack("<I", len(name)) + name)
        state.update(struct.pack("<B", len(dtype)) + dtype)
        state.update(struct.pack(f"<B{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape))
        for part in tensor.elements(seed, backend=backend, threads=threads):
            state.update(part.view("u1").data)

    def hexdigest(self) -> str:
        """Return the digest of what was taken so far, as 64 hexadecimal digits."""
        return self._state.hexdigest()


def state_sha256(
    seed: int,
    tensors: Iterable[StoredTensor],
    *,
    backend: str = "numba",
    threads: int | None = None,
) -> str:
    """Return the SHA-256 of a state, as 64 hexadecimal digits.

    Args:
        seed: the ticket's seed.
        tensors: in the order of the ticket, ties resolved (`pabzip.formats.resolved`); read
            one at a time.
        backend: of `pabzip.seeds.regenerate`; every backend gives the same digest.
        threads: likewise.
    """
    digest = StateDigest()
    for tensor in tensors:
        digest.add(tensor, seed, backend=backend, threads=threads)
    return digest.hexdigest()
