"""What a file holds and where its bytes go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pabzip.formats.coder import Spent, coder_named, shares_side
from pabzip.formats.container import CHECKSUM_BYTES
from pabzip.formats.contents import Header
from pabzip.formats.delta import DeltaEntry
from pabzip.formats.dense import DenseEntry
from pabzip.formats.dense_sections import grouped
from pabzip.formats.huffman import huffman_bytes
from pabzip.formats.seeded import SeededEntry


@dataclass(frozen=True, eq=False)
class TicketReport(Mapping[str, Any]):
    """The numbers of a ``.pabz`` file, as attributes and as a mapping: the keys of ``--json``.

    ``report.bytes`` and ``report["bytes"]`` are the same, and ``dict(report)`` is plain JSON.

    Attributes:
        bytes: of the file: ``header_bytes + codes_bytes + dense_bytes``.
        codes_bytes: of all codes, of seeded and ternary tensors: masks, signs, factors, tables.
            The side stream counts here, and in no one tensor's ``bytes``.
        dense_bytes: of dense tensors, and of scales of seeded and ternary ones.
        header_bytes: of the header and the CRC-32 of every section.
        weights: N, of all seeded and ternary tensors.
        survivors: K, those of them that are not pruned.
        huffman_bytes: what the paper's N + K bits would take, in whole bytes a tensor.
        float32_bytes: of the whole state as loaded: 4 a seeded weight, others in their own type;
            4 a ternary weight whose type another tensor tells.
        seed: the 64-bit Philox key.
        arch: name of the architecture, or ``"custom"``.
        sha256: of the regenerated state, 64 hexadecimal digits.
        base: SHA-256 of the tensors of the base that the file changes; None for a file that
            stands alone.
        tensors: one mapping a tensor: ``name``, ``shape``, ``dtype``, ``kind``, ``coder``,
            ``bytes``, ``weights``, ``survivors``, ``target`` of a tied one, ``change`` of a delta
            (how it differs from the base's), and ``frozen`` (places that the seed prunes or keeps
            for good) of one with a frozen mask. Dense tensors have
            their section's encoding as ``coder`` and no ``survivors``; of those that share a
            section each has its share of the bytes, by raw sizes. Scales of a seeded or ternary
            tensor count in its ``bytes``. A tied tensor is of kind ``"tied"``, has neither coder
            nor survivors, takes 0 bytes, and counts in ``float32_bytes`` alone of the totals.
        negative_zeros_dropped: weights whose -0.0 was stored as 0: pruned ones of seeded tensors,
            and of ternary ones where it was asked for; told by what packs, and 0 of a file that is
            read.
    """

    bytes: int
    codes_bytes: int
    dense_bytes: int
    header_bytes: int
    weights: int
    survivors: int
    huffman_bytes: int
    float32_bytes: int
    seed: int
    arch: str
    sha256: str
    base: str | None
    tensors: list[dict[str, Any]]
    negative_zeros_dropped: int = 0

    def __getitem__(self, key: str) -> Any:
        if key not in self.__dataclass_fields__:
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return (field.name for field in fields(self))

    def __len__(self) -> int:
        return len(fields(self))


def report(header: Header, header_bytes: int) -> TicketReport:
    """Return the numbers of a file, given its header and the bytes before its first section."""
    contents = header.contents
    coded = [(entry, entry.survivors) for entry in contents.entries if entry.survivors is not None]
    packed = sum(_packed_bytes(header).values())
    codes_bytes = header.side + sum(coding.length for coding in header.codings) + packed
    dense_bytes = sum(group.length for group in header.groups) - packed
    parts = len(header.codings) + len(header.groups) + bool(header.side)
    framing = header_bytes + parts * CHECKSUM_BYTES
    return TicketReport(
        bytes=framing + codes_bytes + dense_bytes,
        codes_bytes=codes_bytes,
        dense_bytes=dense_bytes,
        header_bytes=framing,
        weights=sum(entry.weights for entry, _ in coded),
        survivors=sum(survivors for _, survivors in coded),
        huffman_bytes=sum(huffman_bytes(entry.weights, survivors) for entry, survivors in coded),
        float32_bytes=contents.loaded_bytes,
        seed=contents.seed,
        arch=contents.arch,
        sha256=header.sha256,
        base=header.base or None,
        tensors=_rows(header),
    )


def _rows(header: Header) -> list[dict[str, Any]]:
    """Return one row per tensor, in the order of the file."""
    codings, parts = header.coding_of(), _parts(header)
    rows = []
    for entry in header.contents.entries:
        coding, dense = codings.get(entry.name), parts.get(entry.name, [])
        row = {
            "name": entry.name,
            "shape": list(entry.shape),
            "dtype": entry.dtype,
            "kind": entry.kind,
            "coder": coding.coder if coding else dense[0][0] if dense else None,
            "bytes": (coding.length if coding else 0) + sum(size for _, size in dense),
            "weights": entry.weights,
            "survivors": entry.survivors,
        }
        if entry.target is not None:
            row["target"] = entry.target
        if isinstance(entry, DeltaEntry):
            row["change"] = entry.change.form
        if isinstance(entry, SeededEntry) and entry.frozen is not None:
            row["frozen"] = sum(entry.frozen_places)
        rows.append(row)
    return rows


def _parts(header: Header) -> dict[str, list[tuple[str, int]]]:
    """Return encoding and bytes of each part of the tensors that have any, by name."""
    parts: dict[str, list[tuple[str, int]]] = {}
    for group, entries in grouped(header.contents.dense, header.groups):
        for part, size in zip(entries, _shares(group.length, entries), strict=True):
            parts.setdefault(part.name, []).append((group.encoding, size))
    return parts


def _packed_bytes(header: Header) -> dict[str, int]:
    """Return the bytes of codes that lie in dense sections, by name."""
    parts = _parts(header)
    return {
        entry.name: sum(size for _, size in parts[entry.name][: entry.code_parts])
        for entry in header.contents.entries
        if entry.code_parts
    }


def _shares(total: int, entries: Sequence[DenseEntry]) -> list[int]:
    """Split a section's bytes by the raw sizes of its tensors; the parts add up to the whole."""
    raw = sum(entry.stored_bytes for entry in entries)
    shares, seen, given = [], 0, 0
    for entry in entries:
        seen += entry.stored_bytes
        shares.append(total * seen // raw - given)
        given = total * seen // raw
    return shares


PARTS = ("mask", "factors", "signs", "dense", "header")
"""What bytes are spent on: which weights survive; what predicts that (factors, flags and tables, a
tensor's part of the side stream); the survivors' signs; dense values; the header and checksums."""


def breakdown(header: Header, header_bytes: int, side: bytes) -> list[dict[str, Any]]:
    """Return how the bytes of a file split, as JSON values.

    Mask and signs that share a byte, and tensors that share a section, are separated to the
    nearest byte; the sum over all rows and parts is the file's size exactly. Where signs are
    coded together with the mask, they count with the bits that their probability gives them.

    Args:
        header: the file's header.
        header_bytes: bytes of the file before its first section.
        side: the file's side stream; empty where it has none.

    Returns:
        One row per tensor, in the order of the file, then one of the name None, which holds what
        belongs to no tensor. A row has the key ``name`` and those of `PARTS`, in bytes.

    Raises:
        FormatError: the side stream is damaged.
    """
    numbers = report(header, header_bytes)
    spent, codings, packed = _spent(header, side), header.coding_of(), _packed_bytes(header)
    rows = []
    for tensor in numbers["tensors"]:
        name = tensor["name"]
        coding = codings.get(name)
        if name in packed:
            spent[name] = Spent.of(packed[name], sign_bits=tensor["survivors"])
        codes = coding.length if coding else packed.get(name, 0)
        of_codes = spent[name]._asdict() if name in spent else {}
        rows.append(_row(name, dense=tensor["bytes"] - codes, **of_codes))
    rows.append(_row(None, header=numbers["header_bytes"]))
    return rows


def _row(name: str | None, **parts: int) -> dict[str, Any]:
    """Return one row; parts that are not given are 0."""
    return {"name": name, **dict.fromkeys(PARTS, 0), **parts}


def _spent(header: Header, side: bytes) -> dict[str, Spent]:
    """Return what the codes of every seeded tensor take, by name: each coder knows of its own."""
    pairs = list(zip(header.contents.seeded, header.codings, strict=True))
    found: dict[str, Spent] = {}
    for name in dict.fromkeys(coding.coder for coding in header.codings):
        chosen = [(entry, coding.length) for entry, coding in pairs if coding.coder == name]
        spent = coder_named(name, "header").breakdown(chosen, side if shares_side(name) else b"")
        found |= zip([entry.name for entry, _ in chosen], spent, strict=True)
    return found
