"""The header: strict JSON rows to entries, and back.

Python's own parser keeps the last of several equal keys, takes ``NaN``, and recurses without a
limit of ours; none of that may be left to a file.

A tensor is one row, whose length tells its kind. Rows deflate to less than objects or columns do
(ResNet-18: 1,013, 1,142 and 1,063 bytes). A header that breaks a rule raises `FormatError`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from pabzip.errors import FormatError, shown
from pabzip.formats.contents import KINDS, Contents, Entry, Header, check_header
from pabzip.formats.dense_sections import DenseGroup
from pabzip.formats.kind import Coding
from pabzip.formats.limits import GENERATOR

MAX_DEPTH = 8
"""The header needs 4: object, list of rows, row, shape."""

_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


def parse_json(data: bytes) -> Any:
    """Return the value of JSON text, with none of the faults that Python's parser lets through."""
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
_OPTIONAL = {"base": str, "dense": list, "metadata": dict, "options": dict, "side": int}


def to_json(header: Header) -> bytes:
    """Return the header as compact UTF-8 JSON with sorted keys: equal headers give equal bytes."""
    check_header(header)
    contents, codings = header.contents, header.coding_of()
    fields: dict[str, Any] = {
        "arch": contents.arch,
        "generator": GENERATOR,
        "seed": str(contents.seed),
        "sha256": header.sha256,
        "tensors": [entry.to_row(codings.get(entry.name)) for entry in contents.entries],
        "options": dict(contents.options),
        "metadata": dict(contents.metadata),
        "dense": [[group.count, group.encoding, group.length] for group in header.groups],
        "side": header.side,
        "base": header.base,
    }
    kept = {key: value for key, value in fields.items() if key in _REQUIRED or value}
    text = json.dumps(
        kept, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True
    )
    return text.encode("utf-8")


def from_json(data: bytes) -> Header:
    """Return the header that JSON text holds, checked by the same validator as the writer's."""
    fields = parse_json(data)
    _check_fields(fields)
    if fields["generator"] != GENERATOR:
        raise FormatError(
            "header",
            f"expected the generator {GENERATOR}, found {shown(fields['generator'])}; upgrade "
            "pabzip",
        )
    entries: list[Entry] = []
    earlier: dict[str, Entry] = {}
    codings: list[Coding] = []
    for number, row in enumerate(fields["tensors"]):
        entry, coding = _parsed(f"tensor {number}", row, earlier)
        entries.append(entry)
        if coding is not None:
            codings.append(coding)
        if isinstance(entry.name, str):  # the validator refuses other names
            earlier[entry.name] = entry
    contents = Contents(
        _seed(fields["seed"]),
        fields["arch"],
        fields.get("options", {}),
        fields.get("metadata", {}),
        tuple(entries),
    )
    groups = tuple(_group(number, row) for number, row in enumerate(fields.get("dense", [])))
    side, base = fields.get("side", 0), fields.get("base", "")
    header = Header(contents, fields["sha256"], tuple(codings), groups, side, base)
    check_header(header)
    return header


def _parsed(place: str, row: Any, earlier: Mapping[str, Entry]) -> tuple[Entry, Coding | None]:
    """Return the entry of a row, and its coding where it has codes."""
    if isinstance(row, list):
        for kind in KINDS:
            found = kind.from_row(place, row, earlier) if len(row) in kind.row_lengths else None
            if found is not None:
                return found
    lengths = [str(one) for one in sorted({one for kind in KINDS for one in kind.row_lengths})]
    known = f"{', '.join(lengths[:-1])} or {lengths[-1]}"
    raise FormatError(place, f"expected a row of {known} values, found {shown(row)}")


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


def _group(number: int, row: Any) -> DenseGroup:
    """Return one dense section's record."""
    if not isinstance(row, list) or len(row) != 3:
        raise FormatError(f"dense section {number}", f"expected 3 values, found {shown(row)}")
    return DenseGroup(*row)
