"""What an error is at the command line: one message on stderr and one exit code."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from dataclasses import dataclass
from enum import IntEnum

import click

from pabzip import errors as ours
from pabzip.cli.output import one_line


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
