"""Where the bytes of a file go, tensor by tensor: mask, factors, signs, dense values, header."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pabzip.formats.entries import Coding, Header, SeededEntry
from pabzip.formats.report import report

if TYPE_CHECKING:
    from pabzip.formats.context.description import Description

PARTS = ("mask", "factors", "signs", "dense", "header")
"""What bytes are spent on: which weights survive; what predicts that (factors, flags and tables, a
tensor's part of the side stream); the survivors' signs; dense values; the header and checksums."""

Split = tuple[int, int, int]
"""Bytes of mask, factors and signs of one seeded tensor."""


def breakdown(header: Header, header_bytes: int, side: bytes) -> list[dict[str, Any]]:
    """Return how the bytes of a file split, as JSON values.

    Mask and signs that share a byte, and tensors that share a section, are told apart to the
    nearest byte; the sum over all rows and parts is the file's size exactly. Where signs are
    coded together with the mask, they count with the bits that their probability gives them.

    Args:
        header: the file's header.
        header_bytes: bytes of the file before its first section.
        side: the file's side stream; empty where it has none.

    Returns:
        One row a tensor, in the order of the file, then one of the name None, which holds what
        belongs to no tensor. A row has the key ``name`` and those of `PARTS`, in bytes.

    Raises:
        FormatError: the side stream is damaged.
    """
    numbers = report(header, header_bytes)
    seeded = _seeded(header, side)
    pairs = zip(header.contents.seeded, header.codings, strict=True)
    codes = {entry.name: coding.length for entry, coding in pairs}
    rows = []
    for tensor in numbers["tensors"]:
        if tensor["kind"] == "seeded":
            mask, factors, signs = seeded[tensor["name"]]
            scales = tensor["bytes"] - codes[tensor["name"]]
            parts = {"mask": mask, "factors": factors, "signs": signs, "dense": scales}
            rows.append(_row(tensor["name"], **parts))
        else:  # dense, or tied: without bytes
            rows.append(_row(tensor["name"], dense=tensor["bytes"]))
    rows.append(_row(None, header=numbers["header_bytes"]))
    return rows


def _row(name: str | None, **parts: int) -> dict[str, Any]:
    """Return one row; parts that are not given are 0."""
    return {"name": name, **dict.fromkeys(PARTS, 0), **parts}


def _seeded(header: Header, side: bytes) -> dict[str, Split]:
    """Return the split of every seeded tensor, by name."""
    found: dict[str, Split] = {}
    pairs = list(zip(header.contents.seeded, header.codings, strict=True))
    for coder, split in _SPLITS.items():
        chosen = [(entry, coding) for entry, coding in pairs if coding.coder == coder]
        if chosen:
            names = [entry.name for entry, _ in chosen]
            found |= zip(names, split(chosen, side), strict=True)
    return found


def _huffman(tensors: Sequence[tuple[SeededEntry, Coding]], side: bytes) -> list[Split]:
    """Split N bits of mask and K bits of signs."""
    del side  # this coder has none
    return [_split(coding.length, entry.survivors) for entry, coding in tensors]


def _context(tensors: Sequence[tuple[SeededEntry, Coding]], side: bytes) -> list[Split]:
    """Split chunks by their description, and the side stream by what each tensor takes of it."""
    # Imported here: the side stream is read by compiled code, which other files do without.
    from pabzip.formats.context.exchange import Exchange

    exchange = Exchange(side)
    sign_bits, ends = [], [0.0]
    for entry, _ in tensors:
        sign_bits.append(_sign_bits(exchange.tensor(entry.shape, entry.survivors)))
        ends.append(exchange.stream.used_bits)
    exchange.stream.close()
    places = [round(len(side) * end / ends[-1]) for end in ends]
    return [
        _split(coding.length, bits, places[at + 1] - places[at])
        for at, (bits, (_, coding)) in enumerate(zip(sign_bits, tensors, strict=True))
    ]


def _sign_bits(told: Description) -> float:
    """Return the bits that a tensor's payload spends on signs."""
    from pabzip.formats.context.description import MaskMode
    from pabzip.formats.context.predictor import SIGNS_CODED, sign_bytes
    from pabzip.formats.context.probabilities import ONE, SCALE

    if told.signs != SIGNS_CODED:
        return 8.0 * sum(sign_bytes(told.signs, count) for count in told.survivors.tolist())
    if told.mask is not MaskMode.EVEN and told.first == told.last:
        return 8.0 * told.payload_bytes
    share = float(SCALE[told.flip_index]) / ONE
    each = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    return each * float(told.survivors.sum())


def _split(length: int, sign_bits: float, factors: int = 0) -> Split:
    """Give signs their bits in whole bytes, and the mask the rest of the payload."""
    signs = min(length, round(sign_bits / 8))
    return length - signs, factors, signs


_SPLITS: Mapping[str, Callable[[Sequence[tuple[SeededEntry, Coding]], bytes], list[Split]]] = {
    "huffman": _huffman,
    "context": _context,
}
