"""Read and write llama.cpp's ``.gguf`` files, by gguf's own package.

A ticket of such a file keeps what comes before the tensors (metadata, tokenizer, where tensors lie)
as one dense tensor of bytes, `HEADER`, so that the same file can be written again, bit for bit.
Ternary blocks (TQ1_0, TQ2_0) become ternary tensors; blocks of other types stay bytes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pabzip._optional import require
from pabzip.errors import CheckpointError, shown
from pabzip.formats import Scalar
from pabzip.packing.sources import ELEMENT_TYPES, Described
from pabzip.ticket import GGUF_HEADER as HEADER

_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of the types of metadata that have a size of their own, by number."""

LAYOUTS = {"TQ1_0": "tq1_0", "TQ2_0": "tq2_0"}
"""Types of ternary blocks, and the names of their layouts."""


@dataclass(frozen=True, slots=True, eq=False)
class GgufTensor:
    """One tensor of a ``.gguf`` file.

    Attributes:
        name: its name.
        dtype: torch's name of the element type; ``"uint8"`` for blocks.
        values: its elements, bfloat16 as uint16 bit patterns, in the file's own memory map; blocks
            are the bytes of the last dimension.
        layout: of ternary blocks, for `pabzip.packing.ternary.TernaryPacker.recognize`; else None.
    """

    name: str
    dtype: str
    values: NDArray[Any]
    layout: str | None


def gguf_tensors(path: str | os.PathLike[str]) -> list[GgufTensor]:
    """Return the tensors of a ``.gguf`` file, in its order; before them `HEADER`, uint8, flat.

    The file is mapped to memory: values are read when they are used. `HEADER` is left out where it
    could not give the file back: tensors in another order than their names, or other bytes than 0
    between them.

    Raises:
        CheckpointError: not a file of this format, damaged, or of another byte order.
        MissingDependencyError: the package gguf is not installed.
        OSError: the file cannot be read.
    """
    reader = _reader(path)
    tensors = [_tensor(path, one) for one in reader.tensors]
    if any(one.name == HEADER for one in tensors):
        raise CheckpointError(f"{path}: expected no tensor called {HEADER}, found one")
    at = int(reader.data_offset)
    for start, length, _ in [*_spans(reader), (reader.data.size, 0, "")]:
        if start < at or np.any(reader.data[at:start]):
            return tensors
        at = start + length
    size = np.array([reader.data.size], "<u8").view(np.uint8)
    start = np.concatenate([size, np.asarray(reader.data[: reader.data_offset])])
    return [GgufTensor(HEADER, "uint8", start, None), *tensors]


class GgufSource:
    """The tensors of a ``.gguf`` file, each read when it is asked for.

    A `pabzip.packing.sources.Source`; errors are as of `gguf_tensors`.

    Attributes:
        layouts: of ternary blocks, by the tensors' names.
    """

    def __init__(self, path: str | os.PathLike[str]):
        found = gguf_tensors(path)
        self.place = os.fspath(path)
        self.metadata: Mapping[str, Scalar] = {}
        self.tensors = {one.name: Described(one.dtype, one.values.shape) for one in found}
        self.layouts = {one.name: one.layout for one in found if one.layout is not None}
        self._values = {one.name: one.values for one in found}
        if len(self.tensors) < len(found):
            raise CheckpointError(f"{path}: expected each tensor's name once, found one twice")

    def read(self, name: str) -> NDArray[Any]:
        """Return a tensor's values, in the file's memory map."""
        return np.ascontiguousarray(self._values[name])

    def head(self, name: str, count: int) -> bytes:
        """Return the first bytes of a tensor's values."""
        return self._values[name].reshape(-1)[:count].tobytes()[:count]

    def close(self) -> None:
        """Let go of the memory map."""
        self._values.clear()


def write_gguf(
    tensors: Mapping[str, Described],
    values: Iterable[NDArray[Any]],
    file: BinaryIO,
    *,
    metadata: Mapping[str, Scalar] | None = None,
) -> None:
    """Write a ``.gguf`` file again, as it was packed.

    Args:
        tensors: what they are, by name: `HEADER` and then all others, in the order of the ticket.
        values: of each, as they were stored; taken one at a time.
        file: a binary stream.
        metadata: not used; the file has its own, in `HEADER`.

    Raises:
        CheckpointError: there is no `HEADER`, it is not of a ``.gguf`` file, or a tensor does not
            fit it.
    """
    remaining = zip(tensors, values, strict=True)
    name, header = next(remaining, ("", None))
    if name != HEADER or header is None or header.size < 32:
        raise CheckpointError(
            f"expected a ticket of a .gguf file, found none of its first tensor {HEADER}; write "
            "another format"
        )
    size = int(np.ascontiguousarray(header[:8]).view("<u8")[0])
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "start.gguf")
        with open(path, "wb") as start:
            start.write(np.ascontiguousarray(header[8:]).data)
            start.truncate(max(size, header.size - 8))  # zeros, which take no room
        spans = _spans(_reader(path))
    file.write(np.ascontiguousarray(header[8:]).data)
    at = header.size - 8
    for name, array in remaining:
        begin, length, expected = spans.pop(0) if spans else (at, 0, "no more")
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if name != expected or flat.size != length or begin < at:
            raise CheckpointError(
                f"{name}: expected {expected} of {length} bytes, found {flat.size} bytes"
            )
        file.write(bytes(begin - at))
        file.write(flat.data)
        at = begin + length
    if spans or at > size:
        raise CheckpointError(f"expected all tensors of the .gguf file, found {len(spans)} missing")
    file.write(bytes(size - at))


def _spans(reader: Any) -> list[tuple[int, int, str]]:
    """Return offset, bytes and name of each tensor, in the order of the file."""
    return [(int(one.data_offset), int(one.n_bytes), one.name) for one in reader.tensors]


def _reader(path: str | os.PathLike[str]) -> Any:
    """Return gguf's reader of a file."""
    gguf = require("gguf", extra="gguf", purpose="reading a .gguf file")
    if os.path.getsize(path) < 24:
        raise CheckpointError(f"{path}: expected a .gguf file, found {os.path.getsize(path)} bytes")
    try:
        _Walk(np.memmap(path, mode="r")).check()
        reader = gguf.GGUFReader(path)
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError) as error:
        raise CheckpointError(
            f"{path}: expected a .gguf file, found a fault ({error}); is it complete?"
        ) from None
    if reader.byte_order != "I":
        raise CheckpointError(f"{path}: expected a little-endian .gguf file, found another")
    return reader


class _Walk:
    """Walks over the start of a file before gguf's reader does, which believes every count in it.

    ValueError says what is wrong.
    """

    def __init__(self, data: NDArray[np.uint8]):
        self._data, self._at = data, 0

    def check(self) -> None:
        """Check that all that is declared before the tensors' values is there."""
        magic, version = self._integer(4), self._integer(4)
        if magic != 0x46554747 or version not in (2, 3):
            raise ValueError(f"its first bytes are {bytes(self._data[:8]).hex(' ')}")
        tensors, pairs = self._integer(8), self._integer(8)
        for _ in range(pairs):
            self._skip(self._integer(8))
            self._skip_value(self._integer(4), 0)
        for _ in range(tensors):
            self._skip(self._integer(8))
            dimensions = self._integer(4)
            sizes = [self._integer(8) for _ in range(min(dimensions, 5))]
            if dimensions > 4 or prod(sizes) >= 2**53:
                raise ValueError(
                    f"a tensor of {dimensions} dimensions, {shown(prod(sizes))} in all"
                )
            self._skip(12)

    def _skip_value(self, kind: int, depth: int) -> None:
        """Go past a value of metadata."""
        if kind == 8:
            self._skip(self._integer(8))
        elif kind == 9 and depth < 4:
            inner, count = self._integer(4), self._integer(8)
            if inner in _SCALAR_BYTES:
                self._skip(count * _SCALAR_BYTES[inner])
                return
            for _ in range(count):
                self._skip_value(inner, depth + 1)
        elif kind in _SCALAR_BYTES:
            self._skip(_SCALAR_BYTES[kind])
        else:
            raise ValueError(f"a value of type {kind}")

    def _integer(self, size: int) -> int:
        """Return the next unsigned integer."""
        start = self._at
        self._skip(size)
        return int.from_bytes(self._data[start : self._at].tobytes(), "little")

    def _skip(self, size: int) -> None:
        """Go past bytes that must be there."""
        self._at += size
        if self._at > self._data.size:
            raise ValueError(f"it declares {self._at} bytes, of {self._data.size}")


def _tensor(path: str | os.PathLike[str], found: Any) -> GgufTensor:
    """Return what gguf's reader says of a tensor; of types other than ours, the bytes of blocks."""
    kind, data = found.tensor_type.name, np.asarray(found.data)
    if data.nbytes != found.n_bytes:
        raise CheckpointError(
            f"{path}: {found.name}: expected {found.n_bytes} bytes, found the file cut"
        )
    if kind == "BF16":
        data = data.view("<u2")
    return GgufTensor(found.name, ELEMENT_TYPES.get(kind, "uint8"), data, LAYOUTS.get(kind))
