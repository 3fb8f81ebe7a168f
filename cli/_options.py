"""Options that several commands share, and their types."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pabzip.cli._output import Reporter, Verbosity

if TYPE_CHECKING:
    from torch import nn


Command = TypeVar("Command", bound=Callable[..., Any])

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgtp", start=1):
    _UNITS[_letter] = _UNITS[f"{_letter}ib"] = 1024**_power
    _UNITS[f"{_letter}b"] = 1000**_power


def byte_size(text: str) -> int:
    """Read a number of bytes: ``4096``, ``500MB`` (10^6 each), ``2GiB`` or ``2G`` (2^30 each)."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in _UNITS:
        raise click.BadParameter(f"{text!r} is not a size; expected such as 4096, 500MB or 2GiB")
    return int(Fraction(match[1]) * _UNITS[match[2]])  # a fraction keeps large numbers exact


def reporting(command: Command) -> Command:
    """Add ``--json``, ``-q`` and ``-v``; the command receives them as ``reporter``."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
    @click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
    @click.option(
        "-v", "--verbose", count=True, help="Say more on stderr; twice: tracebacks of errors."
    )
    @functools.wraps(command)
    def wrapped(as_json: bool, quiet: bool, verbose: int, **others: Any) -> Any:
        verbosity = click.get_current_context().find_object(Verbosity)
        if verbosity is not None:
            verbosity.level = verbose
        return command(reporter=Reporter(as_json, quiet, verbose), **others)

    return wrapped  # type: ignore[return-value]


def output_option(default: str, *, stdout: bool = True) -> Callable[[Command], Command]:
    """Add ``-o/--output`` and ``-f/--force``; the help says which name is the default."""
    where = "Where to write; '-' is stdout." if stdout else "Where to write."

    def add(command: Command) -> Command:
        command = click.option(
            "-f", "--force", is_flag=True, help="Replace an output that exists."
        )(command)
        return click.option("-o", "--output", metavar="FILE", help=f"{where} [{default}]")(command)

    return add


max_bytes_option = click.option(
    "--max-bytes",
    type=byte_size,
    metavar="SIZE",
    help="Refuse a file whose tensors take more than this once regenerated, such as 2GiB.",
)

threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Threads to regenerate with. [the processors this process may use]",
)

base_option = click.option(
    "--base",
    metavar="FILE",
    help="What a file of changes was packed on, in any form: .safetensors, an index of its shards, "
    ".npz, .pabz or .pt.",
)

OptionValue = bool | int | float | str

OwnNetwork = Callable[[], "nn.Module | None"]
"""Builds the network that ``--arch`` names; returns None without it."""


def network_options(command: Command) -> Command:
    """Add ``--arch`` and ``--arch-option``; the command gets an `OwnNetwork`, ``own_network``."""

    @click.option(
        "--arch",
        metavar="MODULE:CALLABLE",
        help="Build the network of a custom architecture with your own class or function.",
    )
    @click.option(
        "--arch-option",
        "pairs",
        metavar="KEY=VALUE",
        multiple=True,
        help="An argument of the architecture, such as width=32; may be repeated.",
    )
    @functools.wraps(command)
    def wrapped(arch: str | None, pairs: tuple[str, ...], **others: Any) -> Any:
        return command(own_network=functools.partial(_network, arch, pairs), **others)

    return wrapped  # type: ignore[return-value]


def _network(arch: str | None, pairs: Sequence[str]) -> nn.Module | None:
    """Build a registered architecture, or import the user's own ``module:callable``."""
    if arch is None:
        if pairs:
            raise click.UsageError(
                "--arch-option needs --arch, the architecture that it belongs to"
            )
        return None
    from pabzip._optional import require

    require("torch", extra="torch", purpose="building a network")
    from pabzip import models

    options = _arguments(pairs)
    return models.resolve(arch, options) if ":" in arch else models.build(arch, options)


def _arguments(pairs: Sequence[str]) -> dict[str, OptionValue]:
    """Read ``key=value`` pairs, whose values are as those of ``--set``."""
    from pabzip.train.settings import parse_value

    options: dict[str, OptionValue] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise click.BadParameter(
                f"{pair!r}: expected KEY=VALUE, such as width=32", param_hint="'--arch-option'"
            )
        if key in options:
            raise click.BadParameter(f"{key!r} is given twice", param_hint="'--arch-option'")
        value = parse_value(text)
        options[key] = value if isinstance(value, OptionValue) else text
    return options


@contextmanager
def search_bar(reporter: Reporter) -> Iterator[Callable[[int, int], None] | None]:
    """Draw a bar on a terminal; yield what a search calls after each round, or None elsewhere."""
    if not reporter.progress:
        yield None
        return
    from tqdm import tqdm

    with tqdm(desc="search", unit="step", leave=False) as bar:

        def advance(iteration: int, iterations: int) -> None:
            bar.total = iterations
            bar.update(iteration - bar.n)

        yield advance
