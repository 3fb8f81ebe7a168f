"""What a header says: everything about a ticket but the bits of its tensors.

These are plain records; `pabzip.formats.validate` holds what must be true of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from pabzip.formats.registry import DENSE_TYPES
from pabzip.seeds import InitSpec

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class SeededEntry:
    """A seeded tensor: its name, shape, init spec, and number of codes that are not 0.

    With ``scaled`` each row along the first dimension has a scale; see `Contents.dense`.
    """

    name: str
    shape: tuple[int, ...]
    spec: InitSpec
    survivors: int
    scaled: bool = False

    @property
    def count(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def loaded_bytes(self) -> int:
        """Bytes of the regenerated float32 weights."""
        return 4 * self.count


@dataclass(frozen=True, slots=True)
class DenseEntry:
    """A dense tensor: its name, shape, element type, and element type in the file.

    With ``scales_of`` it is no tensor of the network but the scales of the seeded one of its name.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored: str
    scales_of: bool = False

    @property
    def count(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def loaded_bytes(self) -> int:
        """Bytes of the tensor as a loader hands it out."""
        return self.count * DENSE_TYPES[self.dtype].itemsize

    @property
    def stored_bytes(self) -> int:
        """Bytes of the elements of the tensor in a dense section, before any compression."""
        return self.count * DENSE_TYPES[self.stored].itemsize


StoredEntry = SeededEntry | DenseEntry


@dataclass(frozen=True, slots=True)
class TiedEntry:
    """A second name of an earlier tensor: all else is what that one, ``like``, says."""

    name: str
    like: StoredEntry

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of both."""
        return self.like.shape

    @property
    def count(self) -> int:
        """Number of elements; a loader hands them out a second time."""
        return self.like.count

    @property
    def loaded_bytes(self) -> int:
        """Bytes of the tensor as a loader hands it out, in memory of its own."""
        return self.like.loaded_bytes


Entry = StoredEntry | TiedEntry


@dataclass(frozen=True, slots=True)
class Contents:
    """What a ticket holds, whether or not it is in a file.

    Attributes:
        seed: the 64-bit Philox key.
        arch: one of `pabzip.formats.registry.ARCHITECTURES`.
        options: of the architecture.
        metadata: anything else worth keeping; never interpreted.
        entries: one a tensor, in the order of the network's state.
    """

    seed: int
    arch: str
    options: Mapping[str, Scalar]
    metadata: Mapping[str, Scalar]
    entries: tuple[Entry, ...]

    @property
    def seeded(self) -> tuple[SeededEntry, ...]:
        """The seeded tensors, in order; second names of them are not among them."""
        return tuple(entry for entry in self.entries if isinstance(entry, SeededEntry))

    @property
    def dense(self) -> tuple[DenseEntry, ...]:
        """What the dense sections hold, in order: dense tensors, and scales of seeded ones.

        Second names of tensors are not among them.
        """
        found: list[DenseEntry] = []
        for entry in self.entries:
            if isinstance(entry, DenseEntry):
                found.append(entry)
            elif isinstance(entry, SeededEntry) and entry.scaled:
                rows = entry.shape[:1]
                found.append(DenseEntry(entry.name, rows, "float32", "float32", scales_of=True))
        return tuple(found)

    @property
    def loaded_bytes(self) -> int:
        """Bytes of the whole state as a loader hands it out."""
        return sum(entry.loaded_bytes for entry in self.entries)


@dataclass(frozen=True, slots=True)
class Coding:
    """How the codes of one seeded tensor are kept: the coder's name, and bytes of its payload."""

    coder: str
    length: int


@dataclass(frozen=True, slots=True)
class DenseGroup:
    """A dense section: how many dense tensors share it, its encoding, and bytes of its payload."""

    count: int
    encoding: str
    length: int


@dataclass(frozen=True, slots=True)
class Header:
    """A file's header.

    Attributes:
        contents: what the ticket holds.
        sha256: of the regenerated state, 64 hexadecimal digits.
        codings: one a seeded tensor, in order.
        groups: the dense sections, in order; they take the dense tensors in order.
        side: bytes of the side stream that the coders of several tensors share; 0 for none.
    """

    contents: Contents
    sha256: str
    codings: tuple[Coding, ...] = field(default=())
    groups: tuple[DenseGroup, ...] = field(default=())
    side: int = 0
