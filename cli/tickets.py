"""Open the ticket that the command line names: a file, stdin or a pipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pabzip.cli.files import STANDARD, is_stream, read_stdin
from pabzip.errors import FormatError

if TYPE_CHECKING:
    from pabzip.ticket import Ticket


def read_source(source: str, *, max_bytes: int | None = None) -> str | bytes:
    """Return what a reader of files takes: the path itself, or the bytes of stdin or a pipe.

    Args:
        source: a path, or ``-`` for stdin.
        max_bytes: the caller's limit on regenerated tensors. No file is much longer than what it
            regenerates to, so reading from stdin stops a header's length beyond it.

    Raises:
        OSError: the source cannot be read.
        click.UsageError: stdin is a terminal.
    """
    if source == STANDARD:
        from pabzip.formats.registry import MAX_HEADER_BYTES

        return read_stdin(None if max_bytes is None else max_bytes + 2 * MAX_HEADER_BYTES)
    return Path(source).read_bytes() if is_stream(source) else source


@contextmanager
def open_ticket(source: str, *, max_bytes: int | None = None) -> Iterator[Ticket]:
    """Open a ticket for a command; every error of its format names the file.

    Raises:
        FormatError: the file is damaged or no ticket, now or when a tensor is read from it.
        OSError: the source cannot be read.
    """
    from pabzip.ticket import Ticket

    data = read_source(source, max_bytes=max_bytes)
    with naming(source), Ticket.open(data, max_bytes=max_bytes) as ticket:
        yield ticket


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Give a `FormatError` that names no file the name of the command's input."""
    try:
        yield
    except FormatError as error:
        if error.file is not None:
            raise
        raise error.in_file("<stdin>" if source == STANDARD else source) from error
