"""From an exception to an exit code and a message."""

from __future__ import annotations

import errno
import inspect

import click
import pytest

from pabzip import errors
from pabzip.cli._output import ExitCode, describe, exit_code

CODES = {
    errors.FormatError("header", "cut"): ExitCode.UNTRUSTED,
    errors.BaseFileError("base"): ExitCode.FAILED,
    errors.LimitError("header", "too large"): ExitCode.UNTRUSTED,
    errors.CheckpointError("unsafe"): ExitCode.UNTRUSTED,
    errors.TrainingError("not finite"): ExitCode.TRAINING,
    errors.RecipeError("epochs"): ExitCode.USAGE,
    errors.BaseFileError("other base"): ExitCode.FAILED,
    errors.PackError("weight"): ExitCode.FAILED,
    errors.SearchError("collapse"): ExitCode.FAILED,
    errors.SeedError("range"): ExitCode.FAILED,
    errors.DataError("missing"): ExitCode.FAILED,
    errors.ArchitectureError("unknown"): ExitCode.FAILED,
    errors.ExportError("parity"): ExitCode.FAILED,
    errors.MissingDependencyError("torch"): ExitCode.FAILED,
    errors.PabzError("other"): ExitCode.FAILED,
    click.UsageError("no such option"): ExitCode.USAGE,
    KeyboardInterrupt(): ExitCode.INTERRUPTED,
    MemoryError(): ExitCode.FAILED,
    OSError(errno.ENOSPC, "full"): ExitCode.FAILED,
    ImportError("broken"): ExitCode.FAILED,
    ZeroDivisionError("bug"): ExitCode.FAILED,
}


@pytest.mark.parametrize(("error", "code"), CODES.items(), ids=lambda v: type(v).__name__)
def test_exit_codes(error, code):
    assert exit_code(error) == code


def test_every_error_of_ours_has_a_code_on_record():
    ours = {
        found for _, found in inspect.getmembers(errors, inspect.isclass)
        if issubclass(found, errors.PabzError)
    }  # fmt: skip
    assert ours <= {type(error) for error in CODES}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.FormatError("header", "cut", file="a.pabz"), "a.pabz: header: cut"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), "x: No such file"),
        (OSError("odd"), "odd"),
        (MemoryError(), "not enough memory: an allocation failed"),
        (ZeroDivisionError("division"), "unexpected ZeroDivisionError: division (run again with"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_messages(error, message):
    assert describe(error).startswith(message)


def test_a_message_cannot_drive_the_terminal(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("info", "\x1b[31mred.pabz")
    assert result.exit_code == 1
    assert "\x1b" not in result.stderr
    assert "\\x1b[31mred.pabz: No such file" in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [(MemoryError("1 TB"), 1), (EOFError(), 1), (KeyboardInterrupt(), 130), (RuntimeError("x"), 1)],
)
def test_no_error_of_a_command_leaves_a_traceback(project, run, monkeypatch, error, code):
    from pabzip.ticket import Ticket

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(Ticket, "open", fail)
    result = run("info", "model.pabz")
    assert result.exit_code == code
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.strip().startswith("pabzip: error: ")
    assert ("Traceback" in run("info", "model.pabz", "-vv").stderr) == (code != 2)
