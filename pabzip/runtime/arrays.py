"""Read tickets with numpy alone: no torch is loaded, none is needed."""

from __future__ import annotations

import os
from typing import BinaryIO

import numpy as np

from pabzip.ticket import Ticket


def open(  # noqa: A001, the public name is pabzip.open
    source: str | os.PathLike[str] | bytes | BinaryIO, *, max_bytes: int | None = None
) -> Ticket:
    """Open a ``.pabz`` file lazily: the header is read and checked, tensors on access.

    Args:
        source: a path, the bytes of a file, or a seekable binary stream.
        max_bytes: refuse a file whose tensors take more than this many bytes once regenerated.

    Returns:
        A `Ticket`; ``ticket.names``, ``ticket.info()``, ``ticket.codes(name)``,
        ``ticket.weight(name)``. Close it, or use it as a context manager.

    Raises:
        FormatError: the file is damaged or not a ticket; `LimitError` past ``max_bytes``.
        OSError: the file cannot be opened.
    """
    return Ticket.open(source, max_bytes=max_bytes)


def load_arrays(
    source: str | os.PathLike[str] | bytes | BinaryIO,
    *,
    verify: bool = False,
    max_bytes: int | None = None,
    threads: int | None = None,
) -> dict[str, np.ndarray]:
    """Regenerate every tensor of a ticket as a numpy array.

    Args:
        source: as for `open`.
        verify: recompute the SHA-256 of the regenerated state and compare it with the file's.
        max_bytes: as for `open`.
        threads: threads to regenerate with; None takes the processors this process may use.

    Returns:
        Arrays by name, in the file's order: float32 for seeded weights, their own dtype for dense
        tensors (bfloat16 as float32, exactly).

    Raises:
        FormatError: the file is damaged, or its SHA-256 does not match.
    """
    with Ticket.open(source, max_bytes=max_bytes) as ticket:
        if verify:
            ticket.verify(threads=threads)
        return ticket.arrays(threads=threads)
