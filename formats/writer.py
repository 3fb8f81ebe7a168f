"""Write a .pabz file: encode the sections, verify them, replace the old file."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from pabzip.errors import BaseFileError, FormatError, PackError
from pabzip.formats.atomic import open_atomic
from pabzip.formats.coder import AUTO, OnTensor, encode_codes
from pabzip.formats.container import checksum, encode_header
from pabzip.formats.contents import Contents, Header, Tensor, gather
from pabzip.formats.delta import Base, BaseOfDeltas
from pabzip.formats.dense import rounded
from pabzip.formats.dense_sections import encode_groups
from pabzip.formats.digest import state_sha256
from pabzip.formats.kind import Coding
from pabzip.formats.limits import MAX_INTEGER
from pabzip.formats.reader import Reader
from pabzip.formats.report import TicketReport, report
from pabzip.formats.seeded import SeededTensor
from pabzip.formats.sources import open_source
from pabzip.formats.tied import resolved


@dataclass(frozen=True, slots=True)
class EncodedFile:
    """A file in memory, compressed.

    Attributes:
        header: what it declares.
        start: its bytes before the first section.
        payloads: of its sections, in order.
        base: what its deltas change; reading back needs it.
    """

    header: Header
    start: bytes
    payloads: tuple[bytes, ...]
    base: Base | None = None

    def write(self, stream: BinaryIO) -> None:
        """Write the file to a binary stream, which may take it in pieces (a pipe, say)."""
        write_all(stream, self.start)
        for payload in self.payloads:
            write_all(stream, payload)
            write_all(stream, checksum(payload))


def write_all(stream: BinaryIO, data: bytes | memoryview) -> None:
    """Write every byte; an unbuffered stream may take fewer at a time, or none (OSError)."""
    rest = memoryview(data)
    while rest:
        taken = stream.write(rest)
        if not taken:
            raise OSError(f"expected the stream to take {len(rest)} bytes, it took none")
        rest = rest[taken:]


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
        coder: for the codes of every seeded tensor; ``"auto"`` takes the smallest for each.
        dense_dtype: what to round wider dense tensors to, or None.
        on_tensor: called with the name of each seeded tensor that is encoded, from any thread.

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
        seeded = [tensor for tensor in held if isinstance(tensor, SeededTensor)]
        names, codes, side = encode_codes(found.seed, seeded, coder, on_tensor)
        codings = tuple(map(Coding, names, map(len, codes)))
        groups, payloads = encode_groups([part for tensor in held for part in tensor.parts])
        base = BaseOfDeltas()
        for tensor in held:
            base.add(tensor)
        header = Header(found, digest, codings, groups, len(side), base.sha256)
        sides = (side,) if side else ()
        return EncodedFile(header, encode_header(header), (*sides, *codes, *payloads), base)
    except FormatError as error:
        raise PackError(str(error)) from None


def save(encoded: EncodedFile, target: str | os.PathLike[str] | BinaryIO) -> TicketReport:
    """Write an encoded file to a path or stream, verified; see `pabzip.Ticket.save`.

    Returns:
        Its numbers.

    Raises:
        PackError: it does not read back as what was written.
        OSError: the target cannot be written.
    """
    if isinstance(target, str | os.PathLike):
        with open_atomic(target, check=partial(_read_back, base=encoded.base)) as stream:
            encoded.write(stream)
    else:
        file = io.BytesIO()
        encoded.write(file)
        _read_back(file.getbuffer(), encoded.base)
        write_all(target, file.getbuffer())
        target.flush()
    return report(encoded.header, len(encoded.start))


def verify(reader: Reader, *, backend: str = "numba", threads: int | None = None) -> str:
    """Read and regenerate everything, and return its SHA-256 if it is the file's own.

    Raises:
        FormatError: the digests differ, or a part of the file is damaged.
    """
    seed = reader.header.contents.seed
    found = state_sha256(seed, resolved(reader), backend=backend, threads=threads)
    reader.check_sha256(found)
    return found


def _read_back(written: Path | memoryview, base: Base | None) -> None:
    """Open a file that was just written, and verify it."""
    source = open_source(written)
    try:  # without a limit: what is written is at hand
        verify(Reader(source, max_bytes=MAX_INTEGER, base=base))
    except (FormatError, BaseFileError) as error:
        raise PackError(
            f"expected what was written to read back, found a fault ({error}); nothing was kept: "
            "check the disk and memory of this machine"
        ) from error
    finally:
        source.close()
