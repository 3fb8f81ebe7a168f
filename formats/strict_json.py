"""JSON without its loose ends: what the header is written in.

Python's own parser keeps the last of several equal keys, takes ``NaN``, and recurses without a
limit of ours; none of that may be left to a file.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from pabzip.errors import FormatError

MAX_DEPTH = 8
"""The header needs 4: object, list of rows, row, shape."""

_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


def dump(value: Any) -> bytes:
    """Return ``value`` as compact UTF-8 JSON with sorted keys: equal values give equal bytes.

    Raises:
        ValueError: a number that is not finite, or text that is not Unicode.
    """
    text = json.dumps(
        value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True
    )
    return text.encode("utf-8")


def parse(data: bytes) -> Any:
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
