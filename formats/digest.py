"""The SHA-256 of the regenerated state: one number for all that a loader hands out."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

from pabzip.formats.registry import DENSE_TYPES
from pabzip.formats.scales import regenerated
from pabzip.formats.tensors import DenseTensor, SeededTensor, StoredTensor

_RANGE = 1 << 22  # weights regenerated at a time, so that a large tensor needs no copy of itself


def state_sha256(
    seed: int,
    tensors: Iterable[StoredTensor],
    *,
    backend: str = "numba",
    threads: int | None = None,
) -> str:
    """Return the SHA-256 of a state, as 64 hexadecimal digits.

    For each tensor in order the hash takes: the name's length in UTF-8 bytes (uint32), the name,
    the length of the dtype's name (uint8), the dtype's name, the number of dimensions (uint8),
    each dimension (uint64), and the elements in row-major order. Integers and elements are
    little-endian; a boolean is one byte; a seeded tensor has dtype ``float32``.

    Args:
        seed: the ticket's seed.
        tensors: in the order of the ticket, ties resolved (`pabzip.formats.tensors.resolved`); read
            one at a time.
        backend: of `pabzip.seeds.regenerate`; every backend gives the same digest.
        threads: likewise.

    Source: formats/SPEC.md, section "The digest".
    """
    state = hashlib.sha256()
    for tensor in tensors:
        dtype = tensor.dtype if isinstance(tensor, DenseTensor) else "float32"
        name = tensor.name.encode("utf-8")
        state.update(struct.pack("<I", len(name)) + name)
        state.update(struct.pack("<B", len(dtype)) + dtype.encode("ascii"))
        state.update(struct.pack(f"<B{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape))
        if isinstance(tensor, SeededTensor):
            for start in range(0, tensor.codes.size, _RANGE):
                stop = start + _RANGE
                part = regenerated(seed, tensor, start, stop, backend=backend, threads=threads)
                state.update(part.astype("<f4", copy=False).data)
        else:
            values = tensor.values.astype(DENSE_TYPES[dtype].numpy, copy=False)
            state.update(values.reshape(-1).view("u1").data)
    return state.hexdigest()
