"""What a file holds and where its bytes go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pabzip.formats.coder import Spent, coder_named, shares_side
from pabzip.formats.container import CHECKSUM_BYTES
from pabzip.formats.contents import Header
from pabzip.formats.dense import DenseEntry
from pabzip.formats.dense_sections import grouped
from pabzip.formats.huffman import huffman_bytes


def report(header: Header, header_bytes: int) -> dict[str, Any]:
    """Return the numbers of a file as JSON values; the keys stay stable.

    ``bytes`` is ``header_bytes + codes_bytes + dense_bytes`` exactly. The CRC-32 of every section
    counts as header, so that ``codes_bytes`` is payload alone: with the ``huffman`` coder it
    equals ``huffman_bytes``. A side stream counts in ``codes_bytes``, and in no one tensor's
    ``bytes``. Dense tensors that share a section share its bytes in proportion to their raw sizes,
    in whole bytes that add up to the section. Scales of a seeded tensor's rows count in
    ``dense_bytes``, and in that tensor's ``bytes``.

    Args:
        header: the file's header.
        header_bytes: bytes of the file before its first section.

    Returns:
        ``bytes``, ``codes_bytes``, ``dense_bytes``, ``header_bytes``; ``weights`` (N) and
        ``survivors`` (K) of the seeded tensors; ``huffman_bytes``, the paper's N + K bits in whole
        bytes per tensor; ``float32_bytes`` of the whole state as loaded: 4 per seeded weight, dense
        tensors in their own type; ``seed``, ``arch``, ``sha256``; and ``tensors``, a list of
        ``name``, ``shape``, ``dtype``, ``kind``, ``coder`` (of a dense tensor: its section's
        encoding), ``bytes``, ``weights``, ``survivors`` (None for dense ones). A second name of
        an earlier tensor has the kind ``"tied"``, coder and survivors None, 0 bytes, and
        ``target``, that tensor's name; it counts in ``float32_bytes`` alone of the totals.
    """
    contents = header.contents
    codes_bytes = header.side + sum(coding.length for coding in header.codings)
    dense_bytes = sum(group.length for group in header.groups)
    parts = len(header.codings) + len(header.groups) + bool(header.side)
    framing = header_bytes + parts * CHECKSUM_BYTES
    return {
        "bytes": framing + codes_bytes + dense_bytes,
        "codes_bytes": codes_bytes,
        "dense_bytes": dense_bytes,
        "header_bytes": framing,
        "weights": sum(entry.count for entry in contents.seeded),
        "survivors": sum(entry.survivors for entry in contents.seeded),
        "huffman_bytes": sum(
            huffman_bytes(entry.count, entry.survivors) for entry in contents.seeded
        ),
        "float32_bytes": contents.loaded_bytes,
        "seed": contents.seed,
        "arch": contents.arch,
        "sha256": header.sha256,
        "tensors": _rows(header),
    }


def _rows(header: Header) -> list[dict[str, Any]]:
    """Return one row per tensor, in the order of the file."""
    codings = header.coding_of()
    parts: dict[str, list[tuple[str, int]]] = {}
    for group, entries in grouped(header.contents.dense, header.groups):
        for part, size in zip(entries, _shares(group.length, entries), strict=True):
            parts.setdefault(part.name, []).append((group.encoding, size))
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
            "weights": entry.count,
            "survivors": entry.survivors,
        }
        if entry.target is not None:
            row["target"] = entry.target
        rows.append(row)
    return rows


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
    spent, codings = _spent(header, side), header.coding_of()
    rows = []
    for tensor in numbers["tensors"]:
        name = tensor["name"]
        coding = codings.get(name)
        dense = tensor["bytes"] - (coding.length if coding else 0)
        rows.append(_row(name, dense=dense, **(spent[name]._asdict() if coding else {})))
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
