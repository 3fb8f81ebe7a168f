"""Save a ticket: encode it, write it, read it back, and only then let it take its name."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from pabzip.errors import FormatError, PackError
from pabzip.formats.atomic import open_atomic
from pabzip.formats.coder import OnTensor
from pabzip.formats.coders import AUTO
from pabzip.formats.digest import state_sha256
from pabzip.formats.entries import Contents
from pabzip.formats.gather import gather
from pabzip.formats.half import rounded
from pabzip.formats.reader import Reader
from pabzip.formats.registry import MAX_INTEGER
from pabzip.formats.report import report
from pabzip.formats.sources import open_source
from pabzip.formats.tensors import Tensor, resolved
from pabzip.formats.writer import EncodedFile, encode, write_all


def encode_ticket(
    contents: Contents,
    tensors: Iterable[Tensor],
    *,
    coder: str = AUTO,
    dense_dtype: str | None = None,
    on_tensor: OnTensor | None = None,
) -> EncodedFile:
    """Encode a ticket in memory; arguments as for `pabzip.Ticket.save`.

    Args:
        contents: what the ticket holds but its tensors.
        tensors: in the order of the network's state.
        coder: a coder's name, or ``"auto"``.
        dense_dtype: what to round wider dense tensors to, or None.
        on_tensor: told the name of each seeded tensor that is encoded.

    Raises:
        PackError: the ticket breaks a rule of the format, an unknown coder or ``dense_dtype``, or
            a dense value beyond its range.
    """
    kept = [rounded(tensor, dense_dtype) for tensor in tensors]
    try:
        found, held = gather(
            contents.seed, kept, contents.arch, contents.options, contents.metadata
        )
        state = resolved({tensor.name: tensor for tensor in held})
        digest = state_sha256(found.seed, state)
        return encode(found, held, digest, coder=coder, on_tensor=on_tensor)
    except FormatError as error:
        raise PackError(str(error)) from None


def save(encoded: EncodedFile, target: str | os.PathLike[str] | BinaryIO) -> dict[str, Any]:
    """Write an encoded file to a path or stream, verified; see `pabzip.Ticket.save`.

    Returns:
        Its numbers (see `report`).

    Raises:
        PackError: it does not read back as what was written.
        OSError: the target cannot be written.
    """
    if isinstance(target, str | os.PathLike):
        with open_atomic(target, check=_read_back) as stream:
            encoded.write(stream)
    else:
        file = io.BytesIO()
        encoded.write(file)
        _read_back(file.getbuffer())
        write_all(target, file.getbuffer())
        target.flush()
    return report(encoded.header, len(encoded.start))


def verify(reader: Reader, *, backend: str = "numba", threads: int | None = None) -> str:
    """Read and regenerate everything, and return its SHA-256 if it is the file's own.

    Raises:
        FormatError: the digests differ, or a part of the file is damaged.
    """
    seed, expected = reader.header.contents.seed, reader.header.sha256
    found = state_sha256(seed, resolved(reader), backend=backend, threads=threads)
    if found != expected:
        raise FormatError(
            "state",
            f"expected SHA-256 {expected}, found {found} regenerated; the file is damaged, or not "
            "written by pabzip",
        )
    return found


def _read_back(written: Path | memoryview) -> None:
    """Open a file that was just written, and verify it."""
    source = open_source(written)
    try:
        verify(Reader(source, max_bytes=MAX_INTEGER))  # no limit: what is written is at hand
    except FormatError as error:
        raise PackError(
            f"expected what was written to read back, found a fault ({error}); nothing was kept: "
            "check the disk and memory of this machine"
        ) from error
    finally:
        source.close()
