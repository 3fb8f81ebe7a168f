"""Networks by what was typed: ``--arch`` and ``--arch-option``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from torch import nn

OptionValue = bool | int | float | str


def parse_options(pairs: Sequence[str]) -> dict[str, OptionValue]:
    """Read ``key=value`` pairs; values are whole numbers, numbers, true or false, else text.

    Raises:
        click.BadParameter: a pair without ``=``, with an empty or malformed key, or a key twice.
    """
    options: dict[str, OptionValue] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise click.BadParameter(
                f"{pair!r}: expected KEY=VALUE, such as width=32", param_hint="'--arch-option'"
            )
        if key in options:
            raise click.BadParameter(f"{key!r} is given twice", param_hint="'--arch-option'")
        options[key] = _value(value)
    return options


def named_network(arch: str, pairs: Sequence[str]) -> nn.Module:
    """Build a registered architecture, or import the user's own ``module:callable``.

    Raises:
        ArchitectureError: unknown, or its options do not fit.
        MissingDependencyError: torch is not installed.
    """
    from pabzip._optional import require

    require("torch", extra="torch", purpose="building a network")
    from pabzip import models

    options = parse_options(pairs)
    return models.resolve(arch, options) if ":" in arch else models.build(arch, options)


def require_arch(arch: str | None, pairs: Sequence[str]) -> None:
    """Refuse ``--arch-option`` without ``--arch``, which would be ignored.

    Raises:
        click.UsageError: it was given alone.
    """
    if pairs and arch is None:
        raise click.UsageError("--arch-option needs --arch, the architecture that it belongs to")


def _value(text: str) -> OptionValue:
    """Read one value."""
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
