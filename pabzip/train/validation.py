"""Check one value of a recipe; a failure names the key, the value and what would be valid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TypeGuard

from pabzip.errors import RecipeError

_LARGEST = 1e300


def check_choice(key: str, value: object, choices: Sequence[str]) -> None:
    """Refuse ``value`` unless it is one of ``choices``.

    Raises:
        RecipeError: it is not; the message lists the choices.
    """
    if not isinstance(value, str) or value not in choices:
        raise RecipeError(f"{key}: expected one of {', '.join(choices)}, found {value!r}")


def check_integer(key: str, value: object, least: int, most: int | None = None) -> None:
    """Refuse ``value`` unless it is an int (no bool) with ``least <= value <= most``.

    Raises:
        RecipeError: it is not; the message gives the range.
    """
    if _is_integer(value) and least <= value and (most is None or value <= most):
        return
    limits = f"of {least} or more" if most is None else f"from {least} to {most}"
    raise RecipeError(f"{key}: expected a whole number {limits}, found {value!r}")


def check_number(
    key: str,
    value: object,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Refuse ``value`` unless it is a finite int or float (no bool) within the bounds given.

    Raises:
        RecipeError: it is not; the message gives the bounds.
    """
    if (
        (isinstance(value, float) or _is_integer(value))
        and -_LARGEST <= value <= _LARGEST  # neither infinite nor not a number
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    ):
        return
    bounds = [
        f"{word} {bound:g}"
        for word, bound in (("at least", least), ("above", above), ("at most", most),
                            ("below", below))
        if bound is not None
    ]  # fmt: skip
    wanted = " and ".join(bounds) if bounds else "that is finite"
    raise RecipeError(f"{key}: expected a number {wanted}, found {value!r}")


def check_boolean(key: str, value: object) -> None:
    """Refuse ``value`` unless it is true or false.

    Raises:
        RecipeError: it is not.
    """
    if not isinstance(value, bool):
        raise RecipeError(f"{key}: expected true or false, found {value!r}")


def check_text(key: str, value: object) -> None:
    """Refuse ``value`` unless it is a non-empty string.

    Raises:
        RecipeError: it is not.
    """
    if not isinstance(value, str) or not value:
        raise RecipeError(f"{key}: expected a non-empty text, found {value!r}")


def check_milestones(key: str, value: object) -> None:
    """Refuse ``value`` unless it is a tuple of strictly increasing epochs, each 1 or more.

    Raises:
        RecipeError: it is not.
    """
    found = value
    if isinstance(value, tuple):
        found = list(value)
        whole = all(_is_integer(item) and item >= 1 for item in value)
        if whole and all(first < second for first, second in pairwise(value)):
            return
    raise RecipeError(
        f"{key}: expected increasing whole numbers of 1 or more, such as [80, 120], found {found!r}"
    )


def check_ratios(key: str, value: object) -> None:
    """Refuse ``value`` unless it maps names to numbers above 0 and at most 1.

    Raises:
        RecipeError: it does not.
    """
    if not isinstance(value, Mapping):
        raise RecipeError(f"{key}: expected a table of numbers by name, found {value!r}")
    for name, ratio in value.items():
        check_text(f"{key}: name", name)
        if isinstance(ratio, Mapping):
            raise RecipeError(
                f"{key}.{name}: expected a number, found a table; quote a name that has dots, as "
                'in "layer1.conv.weight" = 0.1'
            )
        check_number(f"{key}.{name}", ratio, above=0, most=1)


def _is_integer(value: object) -> TypeGuard[int]:
    """Tell an int from a bool and everything else."""
    return isinstance(value, int) and not isinstance(value, bool)
