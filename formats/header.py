"""The header: strict JSON rows to entries, and back.

Python's own parser keeps the last of several equal keys, takes ``NaN``, and recurses without a
limit of ours; none of that may be left to a file.

A tensor is one row: ``[name, shape, dtype]`` or ``[name, shape, dtype, stored]`` when dense,
``[name, shape, distribution, scale, stream, coder, survivors, bytes]`` when seeded, with a 1 after
these where its rows have scales, and ``[name, target]`` when it is a second name of an earlier one.
Rows deflate to less than objects or columns do (ResNet-18: 1,013, 1,142 and 1,063 bytes).
"""

from __future__ import annotations

import json
import math
import re
import struct
from typing import Any, NoReturn

from pabzip.errors import FormatError, SeedError
from pabzip.formats.checks import shown
from pabzip.formats.entries import (
    Coding,
    Contents,
    DenseEntry,
    DenseGroup,
    Entry,
    Header,
    SeededEntry,
    TiedEntry,
)
from pabzip.formats.registry import GENERATOR
from pabzip.formats.validate import check_header, tied_target
from pabzip.seeds import InitSpec

MAX_DEPTH = 8
"""The header needs 4: object, list of rows, row, shape."""

_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


def dump_json(value: Any) -> bytes:
    """Return ``value`` as compact UTF-8 JSON with sorted keys: equal values give equal bytes.

    Raises:
        ValueError: a number that is not finite, or text that is not Unicode.
    """
    text = json.dumps(
        value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True
    )
    return text.encode("utf-8")


def parse_json(data: bytes) -> Any:
    """Return the value of JSON text.

    Raises:
        FormatError: not JSON, not UTF-8, a key that occurs twice in an object, a number that is
            not finite or has too many digits, or nesting deeper than `MAX_DEPTH`.
    """
    _check_depth(data)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError("header", f"expected UTF-8 text, found {error.reason}") from None
    try:
        return json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        raise FormatError("header", f"expected JSON, found a fault: {error}") from None


def _check_depth(data: bytes) -> None:
    """Refuse deep nesting before a recursive parser meets it."""
    depth = 0
    for token in _TOKENS.finditer(data):
        kind = data[token.start()]
        if kind in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise FormatError(
                    "header", f"expected at most {MAX_DEPTH} levels of nesting, found more"
                )
        elif kind in b"]}":
            depth -= 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its members; a key that occurs twice is refused."""
    members: dict[str, Any] = {}
    for key, value in pairs:
        if key in members:
            raise FormatError("header", f"expected each key once, found {key[:80]!r} twice")
        members[key] = value
    return members


def _no_constant(name: str) -> NoReturn:
    """Refuse NaN and the infinities, which are not JSON."""
    raise FormatError("header", f"expected finite numbers, found {name}")


def _finite(digits: str) -> float:
    """Return a number with a fraction or exponent; one that overflows is refused."""
    value = float(digits)
    if not math.isfinite(value):
        raise FormatError("header", f"expected finite numbers, found {digits[:40]}")
    return value


_REQUIRED = ("arch", "generator", "seed", "sha256", "tensors")
_OPTIONAL = {"dense": list, "metadata": dict, "options": dict, "side": int}


def to_json(header: Header) -> bytes:
    """Return the header as canonical JSON.

    Raises:
        FormatError: the header breaks a rule of the format.
    """
    check_header(header)
    contents = header.contents
    codings = iter(header.codings)
    fields: dict[str, Any] = {
        "arch": contents.arch,
        "generator": GENERATOR,
        "seed": str(contents.seed),
        "sha256": header.sha256,
        "tensors": [_row(entry, codings) for entry in contents.entries],
        "options": dict(contents.options),
        "metadata": dict(contents.metadata),
        "dense": [[group.count, group.encoding, group.length] for group in header.groups],
        "side": header.side,
    }
    kept = {key: value for key, value in fields.items() if key in _REQUIRED or value}
    return dump_json(kept)


def from_json(data: bytes) -> Header:
    """Return the header that JSON text holds, checked by the same validator as the writer's.

    Raises:
        FormatError: the text is not a header of this format version.
    """
    fields = parse_json(data)
    _check_fields(fields)
    if fields["generator"] != GENERATOR:
        _refuse_newer("generator", fields["generator"], GENERATOR)
    entries: list[Entry] = []
    earlier: dict[str, Entry] = {}
    codings: list[Coding] = []
    for number, row in enumerate(fields["tensors"]):
        place = f"tensor {number}"
        if _is_tie(row):
            place = f"tensor {shown(row[0])}"
            entries.append(TiedEntry(row[0], tied_target(place, row[0], row[1], earlier)))
        else:
            entry, coding = _parsed(place, row)
            entries.append(entry)
            codings += coding
        if isinstance(row[0], str):  # the validator refuses other names
            earlier[row[0]] = entries[-1]
    contents = Contents(
        _seed(fields["seed"]),
        fields["arch"],
        fields.get("options", {}),
        fields.get("metadata", {}),
        tuple(entries),
    )
    groups = tuple(_group(number, row) for number, row in enumerate(fields.get("dense", [])))
    header = Header(contents, fields["sha256"], tuple(codings), groups, fields.get("side", 0))
    check_header(header)
    return header


def _parsed(place: str, row: Any) -> tuple[Entry, list[Coding]]:
    """Return the entry of the row of a tensor that is not tied, and a seeded one's coding."""
    if not isinstance(row, list) or len(row) not in (3, 4, 8, 9) or not isinstance(row[1], list):
        raise FormatError(place, f"expected a row of 2, 3, 4, 8 or 9 values, found {shown(row)}")
    name, shape = row[0], tuple(row[1])
    if len(row) < 8:
        return DenseEntry(name, shape, dtype=row[2], stored=row[-1]), []
    scaled = len(row) == 9
    if scaled and (type(row[8]) is not int or row[8] != 1):
        raise FormatError(place, f"expected a 1 for scales of its rows, found {shown(row[8])}")
    entry = SeededEntry(name, shape, _spec(place, *row[2:5]), survivors=row[6], scaled=scaled)
    return entry, [Coding(coder=row[5], length=row[7])]


def _row(entry: Entry, codings: Any) -> list[Any]:
    """Return one tensor's row; a seeded tensor takes the next coding."""
    if isinstance(entry, TiedEntry):
        return [entry.name, entry.like.name]
    if isinstance(entry, DenseEntry):
        row = [entry.name, list(entry.shape), entry.dtype]
        return row if entry.stored == entry.dtype else [*row, entry.stored]
    coding = next(codings)
    return [
        entry.name,
        list(entry.shape),
        entry.spec.distribution,
        _float_to_bits(entry.spec.scale),
        entry.spec.stream,
        coding.coder,
        entry.survivors,
        coding.length,
        *([1] if entry.scaled else []),
    ]


def _is_tie(row: Any) -> bool:
    """Return whether a row is a tied tensor's: two names."""
    return isinstance(row, list) and len(row) == 2 and all(isinstance(name, str) for name in row)


def _check_fields(fields: Any) -> None:
    """Check the header's keys, and that each holds the right kind of JSON value."""
    if not isinstance(fields, dict):
        raise FormatError("header", f"expected a JSON object, found {shown(fields)}")
    for key in _REQUIRED:
        if key not in fields:
            raise FormatError("header", f"expected the key {key!r}, found none")
    for key in fields:
        if key not in _REQUIRED and key not in _OPTIONAL:
            raise FormatError("header", f"expected no unknown key, found {shown(key)}")
    for key, kind in {**_OPTIONAL, "tensors": list}.items():
        if type(fields.get(key, kind())) is not kind:
            raise FormatError(
                "header", f"expected {key!r} to be a {kind.__name__}, found {shown(fields[key])}"
            )


def _seed(text: Any) -> int:
    """Return the seed, which is text in the file: it may exceed what JSON numbers keep exact."""
    plain = isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) <= 20
    if not plain or str(int(text)) != text:
        raise FormatError("header", f"expected the seed as decimal digits, found {shown(text)}")
    return int(text)


def _spec(place: str, distribution: Any, scale: Any, stream: Any) -> InitSpec:
    """Return a row's init spec; the scale is the bit pattern of a float32."""
    if type(scale) is not int or not 0 <= scale < 2**32:
        raise FormatError(place, f"expected the scale's 32 bits, found {shown(scale)}")
    if type(stream) is not int or not isinstance(distribution, str):
        raise FormatError(
            place, f"expected distribution and stream, found {shown([distribution, stream])}"
        )
    try:
        return InitSpec(distribution, struct.unpack("<f", struct.pack("<I", scale))[0], stream)
    except SeedError as error:
        raise FormatError(place, f"{error}; if it comes from a newer pabzip, upgrade") from None


def _group(number: int, row: Any) -> DenseGroup:
    """Return one dense section's record."""
    if not isinstance(row, list) or len(row) != 3:
        raise FormatError(f"dense section {number}", f"expected 3 values, found {shown(row)}")
    return DenseGroup(*row)


def _float_to_bits(value: float) -> int:
    """Return the bit pattern of a float32 value."""
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def _refuse_newer(what: str, found: Any, expected: str) -> NoReturn:
    """Refuse a name that this version does not know."""
    raise FormatError(
        "header", f"expected the {what} {expected}, found {shown(found)}; upgrade pabzip"
    )
