"""What a header says: everything about a ticket but the bits of its tensors.

These are plain records; `pabzip.formats.validate` holds what must be true of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pabzip.formats.dense import DenseEntry, DenseTensor
from pabzip.formats.kind import Coding, EntryKind
from pabzip.formats.seeded import SeededEntry, SeededTensor
from pabzip.formats.tied import TiedEntry, TiedTensor

StoredEntry = SeededEntry | DenseEntry
Entry = StoredEntry | TiedEntry

StoredTensor = SeededTensor | DenseTensor
Tensor = StoredTensor | TiedTensor

KINDS: tuple[type[EntryKind], ...] = (TiedEntry, DenseEntry, SeededEntry)
"""The kinds of tensors, by the length of their rows."""

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Contents:
    """What a ticket holds, whether or not it is in a file.

    Attributes:
        seed: the 64-bit Philox key.
        arch: one of `pabzip.formats.registry.ARCHITECTURES`.
        options: of the architecture.
        metadata: anything else worth keeping; never interpreted.
        entries: one per tensor, in the order of the network's state.
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
        """What the dense sections hold, in order: the parts of all tensors."""
        return tuple(part for entry in self.entries for part in entry.parts)

    @property
    def loaded_bytes(self) -> int:
        """Bytes of the whole state as a loader hands it out."""
        return sum(entry.loaded_bytes for entry in self.entries)


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
        codings: one per seeded tensor, in order.
        groups: the dense sections, in order; they take the dense tensors in order.
        side: bytes of the side stream that the coders of several tensors share; 0 for none.
    """

    contents: Contents
    sha256: str
    codings: tuple[Coding, ...] = field(default=())
    groups: tuple[DenseGroup, ...] = field(default=())
    side: int = 0

    def coding_of(self) -> dict[str, Coding]:
        """Return the coding of each seeded tensor, by name."""
        names = (entry.name for entry in self.contents.seeded)
        return dict(zip(names, self.codings, strict=True))
