"""Checks of single values from a header, and how a hostile value is shown in a message."""

from __future__ import annotations

import re
from typing import Any

from pabzip.errors import FormatError

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def shown(value: Any) -> str:
    """Return a hostile value for a message: short, and with control characters escaped."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    text = ascii(value) if isinstance(value, str | int | float | None) else _outline(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _outline(value: Any) -> str:
    """Describe a list or object without walking all of it."""
    kind = type(value).__name__
    return f"a {kind} of {len(value)}" if isinstance(value, list | tuple | dict) else f"a {kind}"


def check_text(place: str, what: str, text: Any, limit: int) -> None:
    """Check a name or key: Unicode, not empty, no control characters."""
    if not isinstance(text, str) or not text:
        raise FormatError(place, f"expected a {what} that is not empty, found {shown(text)}")
    check_unicode(place, what, text, limit)
    if _CONTROL.search(text):
        raise FormatError(
            place, f"expected a {what} without control characters, found {shown(text)}"
        )


def check_unicode(place: str, what: str, text: str, limit: int) -> None:
    """Check that text is Unicode (JSON's escapes can make half a character) and short enough."""
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise FormatError(place, f"expected a {what} in UTF-8, found {shown(text)}") from None
    if size > limit:
        raise FormatError(place, f"expected a {what} of at most {limit} bytes, found {size}")


def check_name_of(what: str, found: Any, known: Any, place: str) -> None:
    """Check a name against a registry."""
    if not isinstance(found, str) or found not in known:
        raise FormatError(
            place,
            f"expected a known {what} ({', '.join(known)}), found {shown(found)}; if the file "
            "comes from a newer pabzip, upgrade pabzip",
        )


def check_integer(place: str, what: str, found: Any, lowest: int, highest: int) -> None:
    """Check an integer's type and range."""
    if type(found) is not int or not lowest <= found <= highest:
        raise FormatError(
            place, f"expected the {what} from {lowest} to {highest}, found {shown(found)}"
        )


def is_variance(name: str) -> bool:
    """Return whether a tensor's values are variances, by its name."""
    return name == "running_var" or name.endswith(".running_var")
