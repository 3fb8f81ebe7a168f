"""What a ticket and a file's header hold, and the one validator of both.

The writer calls the validator before a byte is written and the reader before anything is allocated,
so that neither can hold a ticket that the other would refuse. The first rule that is broken raises
`FormatError`, with the tensor or section at fault. All arithmetic is on Python's integers, which do
not overflow, and stays within `MAX_INTEGER`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pabzip.errors import FormatError, SeedError, shown
from pabzip.formats.coder import coder_named, shares_side
from pabzip.formats.delta import DeltaEntry, DeltaTensor
from pabzip.formats.dense import DenseEntry, DenseTensor
from pabzip.formats.dense_sections import DenseGroup, check_groups
from pabzip.formats.kind import Coding, EntryKind
from pabzip.formats.limits import (
    ARCHITECTURES,
    MAX_INTEGER,
    MAX_NAME_BYTES,
    MAX_OPTIONS,
    MAX_TENSORS,
    MAX_TEXT_BYTES,
    check_integer,
    check_name_of,
    check_text,
    check_unicode,
    tensor_place,
)
from pabzip.formats.seeded import SeededEntry, SeededTensor
from pabzip.formats.ternary import TernaryEntry, TernaryTensor
from pabzip.formats.tied import TiedEntry, TiedTensor
from pabzip.seeds import check_seed

StoredEntry = SeededEntry | DenseEntry | TernaryEntry | DeltaEntry
Entry = StoredEntry | TiedEntry

StoredTensor = SeededTensor | DenseTensor | TernaryTensor | DeltaTensor
Tensor = StoredTensor | TiedTensor

KINDS: tuple[type[EntryKind], ...] = (TiedEntry, DenseEntry, TernaryEntry, DeltaEntry, SeededEntry)
"""The kinds of tensors, by the length of their rows."""

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Contents:
    """What a ticket holds, whether or not it is in a file.

    Attributes:
        seed: the 64-bit Philox key.
        arch: one of `pabzip.formats.limits.ARCHITECTURES`.
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

    @property
    def expanded_bytes(self) -> int:
        """Those of them that the file alone makes, without what is read from its base."""
        return sum(entry.expanded_bytes for entry in self.entries)

    @property
    def based(self) -> tuple[Entry, ...]:
        """The tensors that are changes of the base's, in order."""
        return tuple(entry for entry in self.entries if entry.based)


@dataclass(frozen=True, slots=True)
class Header:
    """A file's header.

    Attributes:
        contents: what the ticket holds.
        sha256: of the regenerated state, 64 hexadecimal digits.
        codings: one per seeded tensor, in order.
        groups: the dense sections, in order; they take the dense tensors in order.
        side: bytes of the side stream that the coders of several tensors share; 0 for none.
        base: SHA-256 of the tensors of the base that the file changes, 64 hexadecimal digits;
            empty where it changes none.
    """

    contents: Contents
    sha256: str
    codings: tuple[Coding, ...] = field(default=())
    groups: tuple[DenseGroup, ...] = field(default=())
    side: int = 0
    base: str = ""

    @property
    def version(self) -> int:
        """The format version that the header needs: the newest that any of its entries needs."""
        return max((entry.version for entry in self.contents.entries), default=1)

    def coding_of(self) -> dict[str, Coding]:
        """Return the coding of each seeded tensor, by name."""
        names = (entry.name for entry in self.contents.seeded)
        return dict(zip(names, self.codings, strict=True))


def gather(
    seed: int,
    tensors: Iterable[Tensor],
    arch: str,
    options: Mapping[str, Scalar],
    metadata: Mapping[str, Scalar],
) -> tuple[Contents, list[Tensor]]:
    """Check tensors and describe them; arguments as for `pabzip.Ticket`.

    Returns:
        The contents, and the tensors with little-endian, C-contiguous arrays (copied only where
        they are not so already).

    Raises:
        FormatError: a rule of the format is broken; the message names the tensor.
        SeedError: the seed is not a 64-bit key.
    """
    gathering = Gathering(seed, arch, options, metadata)
    held = [gathering.add(tensor) for tensor in tensors]
    return gathering.contents(), held


class Gathering:
    """Checks the tensors of a ticket one at a time, and keeps what a header says of each.

    Arguments and errors are those of `gather`. What belongs to no tensor is checked at once.
    """

    def __init__(
        self, seed: int, arch: str, options: Mapping[str, Scalar], metadata: Mapping[str, Scalar]
    ):
        self._empty = Contents(check_seed(seed), arch, options, metadata, ())
        check_contents(self._empty)
        self._entries: dict[str, Entry] = {}

    def add(self, tensor: Tensor) -> Tensor:
        """Check one more tensor; return it with little-endian, C-contiguous arrays."""
        if not isinstance(tensor, Tensor):
            raise FormatError(
                "tensors",
                "expected SeededTensor, TernaryTensor, DenseTensor, DeltaTensor or TiedTensor, "
                f"found {type(tensor).__name__}",
            )
        tensor = tensor.tidy(tensor_place(tensor.name))
        entry = tensor.entry(self._entries, self._empty.seed)
        _check_entry(len(self._entries), entry, self._entries)
        self._entries[entry.name] = entry
        tensor.check_values()
        return tensor

    def contents(self) -> Contents:
        """Return what the ticket of all tensors so far holds, checked as a whole."""
        kept = dict(self._empty.options), dict(self._empty.metadata)
        contents = Contents(
            self._empty.seed, self._empty.arch, *kept, tuple(self._entries.values())
        )
        check_contents(contents)
        return contents


def check_contents(contents: Contents) -> None:
    """Check everything about a ticket that does not depend on how it is coded."""
    try:
        check_seed(contents.seed)
    except SeedError as error:
        raise FormatError("header", str(error)) from None
    check_name_of("architecture", contents.arch, ARCHITECTURES, "header")
    _check_mapping("options", contents.options)
    _check_mapping("metadata", contents.metadata)
    if len(contents.entries) > MAX_TENSORS:
        raise FormatError(
            "header", f"expected at most {MAX_TENSORS} tensors, found {len(contents.entries)}"
        )
    seen: dict[str, Entry] = {}
    for number, entry in enumerate(contents.entries):
        _check_entry(number, entry, seen)
        seen[entry.name] = entry
    if contents.loaded_bytes > MAX_INTEGER:
        raise FormatError("header", f"expected at most {MAX_INTEGER} bytes of tensors, found more")


def _check_entry(number: int, entry: Entry, earlier: Mapping[str, Entry]) -> None:
    """Check one tensor's entry, the ``number``-th, against the rules and those before it."""
    check_text(f"tensor {number}", "name", entry.name, MAX_NAME_BYTES)
    if entry.name in earlier:
        raise FormatError(
            f"tensor {number}", f"expected each name once, found {shown(entry.name)} twice"
        )
    entry.check(tensor_place(entry.name), earlier)


def check_header(header: Header) -> None:
    """Check a whole header: the contents, and the sections that hold them."""
    check_contents(header.contents)
    _check_digest("SHA-256", header.sha256)
    if header.base:
        _check_digest("SHA-256 of the base", header.base)
    if bool(header.base) != bool(header.contents.based):
        expected = "the SHA-256 of the base that its tensors change"
        found = (expected, "none") if header.contents.based else ("no base", header.base)
        raise FormatError("header", f"expected {found[0]}, found {found[1]}")
    _check_codings(header)
    check_groups(header.contents.dense, header.groups)


def _check_digest(what: str, digest: object) -> None:
    """Check that a digest is written as the format says."""
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise FormatError(
            "header", f"expected the {what} as 64 hexadecimal digits, found {shown(digest)}"
        )


def _check_codings(header: Header) -> None:
    """Check how the codes of every seeded tensor are kept."""
    seeded = header.contents.seeded
    if len(header.codings) != len(seeded):
        raise FormatError("header", f"expected {len(seeded)} codings, found {len(header.codings)}")
    sharing: set[str] = set()
    for entry, coding in zip(seeded, header.codings, strict=True):
        place = tensor_place(entry.name)
        coder = coder_named(coding.coder, place)
        check_integer(place, "bytes of codes", coding.length, 0, MAX_INTEGER)
        coder.check_length(entry, coding.length)
        if shares_side(coding.coder):
            sharing.add(coding.coder)
    check_integer("header", "bytes of the side stream", header.side, 0, MAX_INTEGER)
    if len(sharing) > 1:
        raise FormatError(
            "header", f"expected one coder with a side stream, found {', '.join(sorted(sharing))}"
        )
    if header.side and not sharing:
        raise FormatError(
            "header", f"expected no side stream without a coder that reads it, found {header.side}"
        )


def _check_mapping(what: str, mapping: Mapping[Any, Any]) -> None:
    """Check options or metadata: flat, and each value a JSON scalar."""
    if not isinstance(mapping, Mapping):
        raise FormatError(what, f"expected a flat mapping, found {shown(mapping)}")
    if len(mapping) > MAX_OPTIONS:
        raise FormatError(what, f"expected at most {MAX_OPTIONS} keys, found {len(mapping)}")
    for key, value in mapping.items():
        check_text(what, "key", key, MAX_NAME_BYTES)
        place = f"{what} {shown(key)}"
        if isinstance(value, str):
            check_unicode(place, "text", value, MAX_TEXT_BYTES)
        elif type(value) is int:
            check_integer(place, "value", value, -MAX_INTEGER, MAX_INTEGER)
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise FormatError(place, f"expected a finite number, found {value}")
        elif value is not None and type(value) is not bool:
            raise FormatError(
                place, f"expected text, a number, true, false or null, found {shown(value)}"
            )
