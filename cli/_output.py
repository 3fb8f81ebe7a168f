"""What a command prints: one JSON object, or text for people, and errors with exit codes."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import click

from pabzip import errors as ours
from pabzip.cli._files import STANDARD

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


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
        """Return a reporter for a command that writes ``target``, which may be ``-`` for stdout."""
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
        """
        if self.json:
            write_text(to_json(values) + "\n")
        elif not self.quiet:
            write_text(_render(parts, to_stderr=self.stdout_taken), to_stderr=self.stdout_taken)

    def detail(self, text: str) -> None:
        """Write a remark to stderr where ``-v`` asks for it."""
        if self.verbose and not self.quiet:
            write_text(f"{printable(text)}\n", to_stderr=True)


class Bars:
    """Progress bars of a command, one for each thing that it does, with the rate in bytes.

    Args:
        total: bytes of the loaded state.
        reporter: says whether bars may be drawn.
    """

    def __init__(self, total: int, reporter: Reporter):
        self._total, self._shown = total, reporter.progress
        self._what = ""
        self._bar: Any = None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, what: str, count: int) -> None:
        """Show that ``count`` more bytes are done; see `pabzip.formats.ahead.Progress`."""
        if not self._shown:
            return
        if what != self._what:
            from tqdm import tqdm

            self.__exit__()
            self._what = what
            # Of codes only those of seeded weights are encoded: nobody knows how many beforehand.
            total = None if what == "encoding" else self._total
            self._bar = tqdm(total=total, desc=what, unit="B", unit_scale=True)
        self._bar.update(count)


def plain_table(*, header: bool = True) -> Table:
    """Return an empty table with aligned columns and no lines."""
    from rich.table import Table

    return Table(
        box=None, show_header=header, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold"
    )


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
    """Write and flush; a failure names the stream."""
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
    """Turn lines and tables into text, in color on a terminal."""
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


class ExitCode(IntEnum):
    """The exit codes of ``pabzip``; scripts may rely on them."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNTRUSTED = 3
    TRAINING = 4
    INTERRUPTED = 130


@dataclass
class Verbosity:
    """How much an error shows; travels as ``ctx.obj``.

    Attributes:
        level: the number of ``-v`` given; from 2 on an error shows its traceback.
    """

    level: int = 0


def exit_code(error: BaseException) -> ExitCode:
    """Return the exit code of an error that ended a command."""
    match error:
        case ours.FormatError() | ours.CheckpointError():
            return ExitCode.UNTRUSTED
        case ours.TrainingError():
            return ExitCode.TRAINING
        case ours.RecipeError() | click.UsageError():
            return ExitCode.USAGE
        case KeyboardInterrupt():
            return ExitCode.INTERRUPTED
        case click.Abort() if not isinstance(error.__cause__, EOFError):
            return ExitCode.INTERRUPTED
        case _:
            return ExitCode.FAILED


def describe(error: BaseException) -> str:
    """Return the message of an error: what is at fault, and the reason."""
    match error:
        case click.UsageError():
            hint = f" Try '{error.ctx.command_path} --help'." if error.ctx is not None else ""
            return f"{error.format_message().rstrip('.')}.{hint}"
        case click.ClickException():
            return error.format_message()
        case click.Abort() if isinstance(error.__cause__, EOFError):
            return "unexpected end of input"
        case KeyboardInterrupt() | click.Abort():
            return "interrupted"
        case ours.PabzError():
            return str(error)
        case MemoryError():
            detail = str(error) or "an allocation failed"
            return f"not enough memory: {detail}; --max-bytes refuses large files beforehand"
        case OSError() if error.strerror:
            where = "" if error.filename is None else f"{os.fspath(error.filename)}: "
            return f"{where}{error.strerror}"
        case OSError() | ImportError():
            return str(error) or type(error).__name__
        case _:
            detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            return f"unexpected {detail} (run again with -vv for the traceback)"


def report(error: BaseException, verbosity: Verbosity) -> ExitCode:
    """Write an error to stderr, leave stdout closed for good, and return the exit code.

    With ``-vv`` the traceback comes first. A reader that closed the pipe gets silence.
    """
    _flush_or_discard_stdout()
    if isinstance(error, BrokenPipeError):
        return ExitCode.FAILED
    cause = error.__cause__ if isinstance(error, click.Abort) and error.__cause__ else error
    with contextlib.suppress(OSError):  # stderr itself may be closed or full
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            error.show()
            return exit_code(error)
        if verbosity.level >= 2 and not isinstance(error, click.UsageError):
            click.echo("".join(traceback.format_exception(cause)).rstrip(), err=True)
        click.echo(f"pabzip: error: {one_line(describe(error))}", err=True)
    return exit_code(error)


def _flush_or_discard_stdout() -> None:
    """Flush stdout; where that fails, point it at nothing so that the exit stays quiet."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, sys.stdout.fileno())
            os.close(nothing)


def short(operations: float) -> str:
    """Return a number of operations for people: ``1.71 T``."""
    for unit, each in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if operations >= each:
            value = operations / each
            digits = 2 if value < 10 else 1 if value < 100 else 0
            return f"{value:,.{digits}f} {unit}"
    return f"{operations:g}"
