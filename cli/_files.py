"""The files that a command reads and writes: tickets, outputs, streams."""

from __future__ import annotations

import errno
import math
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from pabzip.errors import BaseFileError, FormatError

if TYPE_CHECKING:
    from pabzip.ticket import Ticket


STANDARD = "-"
"""The name that stands for stdin or stdout."""


def default_output(source: str, suffix: str) -> str:
    """Return the output that belongs to an input: its name with another suffix; stdout to stdin.

    A folder's stands beside it; an index of shards has the name of its model.
    """
    if source == STANDARD:
        return STANDARD
    if os.path.isdir(source):
        folder = Path(source).absolute()
        return str(Path(source).parent / f"{folder.name}{suffix}" if Path(source).name else suffix)
    return str(Path(source.removesuffix(".index.json")).with_suffix(suffix))


def format_of(target: str, formats: Iterable[str], hint: str = "") -> str:
    """Return the format that an output's suffix stands for; the first of them for stdout.

    ``hint`` ends the message of the error for another suffix.
    """
    formats = list(formats)
    if target == STANDARD:
        return formats[0]
    suffix = Path(target).suffix.removeprefix(".").lower()
    if suffix not in formats:
        raise click.UsageError(
            f"{target}: expected a name that ends in {', '.join(f'.{name}' for name in formats)}"
            f"{hint}"
        )
    return suffix


def check_output(target: str, *, force: bool, inputs: Iterable[str] = ()) -> None:
    """Refuse an output before any work is done for it.

    Args:
        target: a path, or ``-`` for stdout.
        force: an existing file may be replaced.
        inputs: files that the command reads; the output must be none of them, under any name.
    """
    if target == STANDARD:
        if sys.stdout.isatty():
            raise click.UsageError(
                "the output is binary and stdout is a terminal; name a file with -o, or redirect"
            )
        return
    for source in inputs:
        if source != STANDARD and _same_file(source, target):
            raise shutil.SameFileError(
                errno.EINVAL, f"is the input {source} itself; name another output with -o", target
            )
    if os.path.isdir(target):
        raise IsADirectoryError(errno.EISDIR, "is a directory; name a file in it with -o", target)
    folder = os.path.dirname(os.path.realpath(target))
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            errno.ENOENT, f"cannot be written, there is no folder {folder}; make it first", target
        )
    if is_stream(target):
        return
    if os.path.exists(target) and not force:
        raise FileExistsError(
            errno.EEXIST,
            "exists already; replace it with -f/--force, or name another with -o",
            target,
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(
            errno.EACCES, f"cannot be written, the folder {folder} is read-only", target
        )


def is_stream(target: str) -> bool:
    """Return whether a target is written to (stdout, a device, a pipe) and not replaced."""
    if target == STANDARD:
        return True
    try:
        mode = os.stat(target).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


@contextmanager
def open_output(target: str) -> Iterator[BinaryIO]:
    """Open an output that was checked by `check_output`.

    A file appears whole or not at all. What goes to stdout, a device or a pipe is held back until
    it is complete, so that a failure leaves nothing there either.
    """
    if not is_stream(target):
        from pabzip.formats.atomic import open_atomic

        with _naming(target), open_atomic(target) as file:
            yield file
        return
    from pabzip.formats.atomic import open_scratch
    from pabzip.formats.writer import copy_all

    with open_scratch() as held:
        yield held
        if target == STANDARD:
            with _naming("<stdout>"):
                copy_all(held, sys.stdout.buffer)
                sys.stdout.buffer.flush()
        else:
            with _naming(target), open(target, "wb") as stream:
                copy_all(held, stream)


def _same_file(first: str, second: str) -> bool:
    """Return whether two paths lead to one file, by symbolic or hard links too."""
    try:
        return os.path.samefile(first, second)
    except OSError:
        return os.path.realpath(first) == os.path.realpath(second)


@contextmanager
def _naming(target: str) -> Iterator[None]:
    """Give an `OSError` that names no file the name of the output."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, target) from error


def read_source(source: str, *, max_bytes: int | None = None) -> str | bytes:
    """Return what a reader of files takes: the path itself, or the bytes of stdin or a pipe.

    Arguments are as for `open_input`.
    """
    with open_input(source, max_bytes=max_bytes) as opened:
        return opened if isinstance(opened, str) else opened.read()


@contextmanager
def open_input(source: str, *, max_bytes: int | None = None) -> Iterator[str | BinaryIO]:
    """Yield what a reader of files takes: the path itself, or stdin or a pipe as a seekable file.

    What comes from there is held in memory while it is small, and else in a temporary file.

    Args:
        source: a path, or ``-`` for stdin.
        max_bytes: the caller's limit on regenerated tensors. No file is much longer than what it
            regenerates to, so reading stops a header's length beyond it.
    """
    if source != STANDARD and not is_stream(source):
        yield source
        return
    if source == STANDARD and sys.stdin.isatty():
        raise click.UsageError("the input is binary and stdin is a terminal; name a file")
    from pabzip.formats.atomic import open_scratch
    from pabzip.formats.limits import MAX_HEADER_BYTES

    limit = math.inf if max_bytes is None else max_bytes + 2 * MAX_HEADER_BYTES
    with open_scratch() as held:
        with ExitStack() as stack:
            stream: BinaryIO = sys.stdin.buffer
            if source != STANDARD:
                stream = stack.enter_context(open(source, "rb"))
            while chunk := stream.read(2**20):
                held.write(chunk)
                if held.tell() > limit:
                    place = "<stdin>" if source == STANDARD else source
                    raise OSError(errno.EFBIG, f"longer than {limit:,} bytes", place)
        held.seek(0)
        yield held


@contextmanager
def open_ticket(
    source: str, *, max_bytes: int | None = None, base: str | None = None
) -> Iterator[Ticket]:
    """Open a ticket for a command; errors of its format, later ones too, name the file.

    ``base`` is a path: what a file of changes was packed on.
    """
    from pabzip.formats.sources import SeekableSource
    from pabzip.runtime import loaders

    with naming(source), open_input(source, max_bytes=max_bytes) as opened:
        file = opened if isinstance(opened, str) else SeekableSource(opened)
        with loaders.open(file, max_bytes=max_bytes, base=base) as ticket:
            check_base(source, ticket, base)
            yield ticket


def check_base(source: str, ticket: Ticket, base: str | None) -> None:
    """Refuse a base for a file that has no use for it."""
    if base is not None and not any(ticket.kind(name) == "delta" for name in ticket.names):
        raise BaseFileError(
            f"{source}: expected changes of a base, found none, so the file needs no base; leave "
            "out --base"
        )


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Give a `FormatError` that names no file the name of the command's input."""
    try:
        yield
    except FormatError as error:
        if error.file is not None:
            raise
        raise error.in_file("<stdin>" if source == STANDARD else source) from error
