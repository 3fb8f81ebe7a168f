"""Check the options of an architecture: names, kinds and ranges."""

from __future__ import annotations

from collections.abc import Mapping

from pabzip.errors import ArchitectureError

OptionValue = int | bool

# The upper bounds keep every parameter count below 2**53, so that options read from a file
# can never overflow a size.
_RANGES: dict[str, tuple[int, int]] = {
    "num_classes": (1, 2**20),
    "in_channels": (1, 2**12),
    "image_size": (1, 2**12),
    "width": (1, 2**14),
    "widen": (1, 2**6),
}


def resolve_options(
    name: str,
    known: Mapping[str, OptionValue],
    given: Mapping[str, object],
    least: Mapping[str, int],
) -> dict[str, OptionValue]:
    """Return ``known`` updated by ``given``, every value checked.

    Args:
        name: the architecture, for messages.
        known: the options that the architecture has, with their defaults.
        given: options of the caller.
        least: smallest values where the architecture needs more than 1.

    Raises:
        ArchitectureError: an option that the architecture does not have, a value of another kind
            or out of range; the message lists what is valid.
    """
    for option in given:
        if option not in known:
            raise ArchitectureError(
                f"architecture {name!r}: expected options among {', '.join(known)}, "
                f"found {option!r}"
            )
    return {
        option: _checked(name, option, given.get(option, default), default, least)
        for option, default in known.items()
    }


def _checked(
    name: str, option: str, value: object, default: OptionValue, least: Mapping[str, int]
) -> OptionValue:
    """Return one value if it has the kind of its default and lies in range."""
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
        expected = "true or false"
    else:
        low, high = _RANGES[option]
        low = max(low, least.get(option, low))
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        expected = f"a whole number from {low} to {high}"
    raise ArchitectureError(
        f"architecture {name!r}: option {option}: expected {expected}, found {value!r}"
    )
