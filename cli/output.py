"""Where results and remarks go: one result on stdout, everything else on stderr."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from pabzip.cli.files import STANDARD

if TYPE_CHECKING:
    from rich.console import RenderableType

_WIDTH_WITHOUT_TERMINAL = 160


@dataclass(frozen=True, slots=True)
class Reporter:
    """Writes what a command has to say, the way its flags ask for.

    Attributes:
        json: the result is one JSON object on stdout, and nothing else goes there.
        quiet: no result for people, no remarks, no progress.
        verbose: remarks on what is being done, on stderr.
        stdout_taken: the file itself goes to stdout, so the result for people goes to stderr.
    """

    json: bool = False
    quiet: bool = False
    verbose: int = 0
    stdout_taken: bool = False

    @property
    def progress(self) -> bool:
        """Whether a progress bar may be drawn: stderr is a terminal and nobody asked for quiet."""
        return not self.quiet and sys.stderr.isatty()

    def for_output(self, target: str) -> Reporter:
        """Return a reporter for a command that writes ``target``, which may be ``-`` for stdout.

        Raises:
            click.UsageError: both the file and the JSON object would go to stdout.
        """
        if target != STANDARD:
            return self
        if self.json:
            raise click.UsageError(
                "--json and the output '-' both write to stdout; name a file with -o"
            )
        return replace(self, stdout_taken=True)

    def result(self, values: Mapping[str, Any], *parts: str | RenderableType) -> None:
        """Write a command's result.

        Args:
            values: the result by name, printed with ``--json``.
            *parts: the same for people: lines of text, rich tables.

        Raises:
            OSError: stdout cannot be written; it carries the name ``<stdout>``.
        """
        if self.json:
            write_text(to_json(values) + "\n")
        elif not self.quiet:
            write_text(_render(parts, to_stderr=self.stdout_taken), to_stderr=self.stdout_taken)

    def detail(self, text: str) -> None:
        """Write a remark to stderr where ``-v`` asks for it."""
        if self.verbose and not self.quiet:
            write_text(f"{printable(text)}\n", to_stderr=True)


def to_json(values: Mapping[str, Any]) -> str:
    """Return one strict JSON object; numbers that JSON cannot hold become null."""
    return json.dumps(_finite(values), indent=2, allow_nan=False)


def printable(text: str) -> str:
    """Return ``text`` with control characters escaped: names in a file may hold terminal codes."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """Return ``text`` as one printable line, for messages that a library broke into several."""
    return printable(" ".join(line.strip() for line in text.splitlines() if line.strip()))


def write_text(text: str, *, to_stderr: bool = False) -> None:
    """Write and flush; a failure names the stream.

    Raises:
        OSError: the stream cannot be written.
    """
    try:
        click.echo(text, nl=False, err=to_stderr)
    except OSError as error:
        name = "<stderr>" if to_stderr else "<stdout>"
        raise OSError(error.errno, error.strerror, name) from error


def size(count: int) -> str:
    """Return a number of bytes for people: ``1,499 KiB``, as the papers count."""
    if count < 1024:
        return f"{count} B"
    for unit, bytes_each in (("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30), ("TiB", 2**40)):
        value = count / bytes_each
        if value < 1000 or unit == "TiB":
            break
    return f"{value:,.2f} {unit}" if value < 100 else f"{value:,.0f} {unit}"


def ratio(larger: int, smaller: int) -> str:
    """Return how many times ``smaller`` fits into ``larger``: ``39.6x``."""
    return f"{larger / smaller:,.1f}x" if smaller else "-"


def _finite(value: Any) -> Any:
    """Replace not-a-number and infinities by None, at every level."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value


def _render(parts: Sequence[str | RenderableType], *, to_stderr: bool) -> str:
    """Turn lines and tables into text, in colour on a terminal."""
    from rich.console import Console

    terminal = (sys.stderr if to_stderr else sys.stdout).isatty()
    text = io.StringIO()
    console = Console(
        file=text,
        force_terminal=terminal,
        width=None if terminal else _WIDTH_WITHOUT_TERMINAL,
        markup=False,
        highlight=False,
        emoji=False,
    )
    for part in parts:
        if isinstance(part, str):
            console.print(printable(part), soft_wrap=True)
        else:
            console.print(part)
    return text.getvalue()
