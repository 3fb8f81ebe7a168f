"""The ticket: what search and unmasking find, files hold, and loaders regenerate."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, BinaryIO

from pabzip.errors import FormatError, PackError
from pabzip.formats import (
    AUTO,
    DenseTensor,
    Reader,
    Scalar,
    SeededTensor,
    Tensor,
    TiedTensor,
    breakdown,
    encode_ticket,
    gather,
    open_source,
    report,
    save,
    verify,
)
from pabzip.ticket_tensors import TicketTensors, naming

__all__ = ["DenseTensor", "SeededTensor", "Ticket", "TiedTensor"]

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO


class Ticket(TicketTensors):
    """A network as a seed, one code a weight, and the few tensors trained in the ordinary way.

    The weights of a seeded tensor are never held: they are a function of the seed, its init spec
    and its codes, and are regenerated when asked for, to the bit, on any machine. A ticket that
    was opened from a file reads each tensor when it is asked for and keeps none.

    Args:
        seed: the 64-bit Philox key, ``0 <= seed < 2**64``.
        tensors: in the order of the network's state; their arrays are not copied, and must not
            change while the ticket is in use.
        arch: a name of `pabzip.formats.ARCHITECTURES`.
        arch_options: of the architecture: flat JSON values.
        metadata: anything else worth keeping: flat JSON values, never interpreted.

    Raises:
        PackError: the tensors do not make a ticket (a name twice, codes other than 0, +1 and -1,
            values that are not finite, ...); the message names the tensor.
        SeedError: the seed is not a 64-bit key.

    Source: Peek-a-Boo, Section 3 (disguised subnetworks) and Appendix D (what must be stored).
    """

    def __init__(
        self,
        *,
        seed: int,
        tensors: Iterable[Tensor],
        arch: str = "custom",
        arch_options: Mapping[str, Scalar] | None = None,
        metadata: Mapping[str, Scalar] | None = None,
    ):
        try:
            contents, held = gather(seed, tensors, arch, arch_options or {}, metadata or {})
        except FormatError as error:
            raise PackError(str(error)) from None
        super().__init__(contents, {tensor.name: tensor for tensor in held}, None)

    @classmethod
    def open(cls, source: Source, *, max_bytes: int | None = None) -> Ticket:
        """Open a ``.pabz`` file; only its header is read.

        Args:
            source: a path (the file stays open until `close`), the file's bytes, or a binary
                stream, which is read from where it stands, to the end of the ticket, and kept.
            max_bytes: most bytes of the loaded state that the file may declare (`info`'s
                ``float32_bytes``); None takes 65,536 times the file, or 256 MiB
                if that is more.

        Raises:
            FormatError: not a .pabz file, a newer version, or damaged.
            LimitError: the file declares more than ``max_bytes``.
            OSError: the path cannot be opened.
        """
        file = os.fspath(source) if isinstance(source, str | os.PathLike) else None
        opened = open_source(source)
        try:
            with naming(file):
                reader = Reader(opened, max_bytes=max_bytes)
        except BaseException:
            opened.close()
            raise
        ticket = cls.__new__(cls)
        TicketTensors.__init__(ticket, reader.header.contents, reader, file)
        return ticket

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        place = "" if self._file is None else f" in {self._file!r}"
        return f"<Ticket {self.arch}, seed {self.seed}, {len(self.names)} tensors{place}>"

    def close(self) -> None:
        """Close the file of an opened ticket; reading a tensor afterwards raises ValueError."""
        if isinstance(self._tensors, Reader):
            self._tensors.close()

    @property
    def arch(self) -> str:
        """Name of the architecture, or ``"custom"``."""
        return self._contents.arch

    @property
    def arch_options(self) -> dict[str, Scalar]:
        """Options of the architecture."""
        return dict(self._contents.options)

    @property
    def metadata(self) -> dict[str, Scalar]:
        """What else the ticket's maker wrote down."""
        return dict(self._contents.metadata)

    def verify(self, *, backend: str = "numba", threads: int | None = None) -> str:
        """Read and regenerate everything, and compare its SHA-256 with the file's own.

        Returns:
            The SHA-256. A ticket that is in no file has nothing to differ from.

        Raises:
            FormatError: the digests differ, or a part of the file is damaged.
        """
        if not isinstance(self._tensors, Reader):
            return self.sha256(backend=backend, threads=threads)
        with naming(self._file):
            return verify(self._tensors, backend=backend, threads=threads)

    def info(self) -> dict[str, Any]:
        """Return the numbers of `pabzip.formats.report`, from the header alone.

        A ticket that is in no file is encoded to find them: they are those of the file that
        `save` would write.
        """
        if isinstance(self._tensors, Reader):
            return report(self._tensors.header, self._tensors.header_bytes)
        encoded = encode_ticket(self._contents, self._tensors.values())
        return report(encoded.header, len(encoded.start))

    def breakdown(self) -> list[dict[str, Any]]:
        """Return where the bytes of `info` go, tensor by tensor: `pabzip.formats.report`.

        Reads the header and the side stream. A ticket that is in no file is encoded, as by `info`.

        Raises:
            FormatError: the side stream is damaged.
        """
        if isinstance(self._tensors, Reader):
            with naming(self._file):
                side = self._tensors.side_stream()
                return breakdown(self._tensors.header, self._tensors.header_bytes, side)
        encoded = encode_ticket(self._contents, self._tensors.values())
        side = encoded.payloads[0] if encoded.header.side else b""
        return breakdown(encoded.header, len(encoded.start), side)

    def save(
        self,
        target: str | os.PathLike[str] | BinaryIO,
        *,
        coder: str = AUTO,
        dense_dtype: str | None = None,
        on_tensor: Callable[[str], None] | None = None,
    ) -> dict[str, Any]:
        """Write the ticket as a ``.pabz`` file, open it again and verify it.

        A path is written beside the target and takes its name only after it was verified, so the
        target is the old file or the new one, never a part of one; it may be the file that this
        ticket was opened from. For a stream the file is verified in memory before any of it is
        written.

        Args:
            target: a path, or a binary stream to write to from where it stands.
            coder: of the codes: a name of `pabzip.formats.CODERS`, or ``"auto"``: the smallest
                for each tensor.
            dense_dtype: None keeps dense tensors as they are; ``"float16"`` or ``"bfloat16"``
                stores float32 and float64 ones rounded to nearest even. They load as their own
                type, and the SHA-256 is of the rounded values.
            on_tensor: told the name of each seeded tensor that is encoded, from any thread; for
                progress bars.

        Returns:
            The numbers of `info`, of the file that was written.

        Raises:
            PackError: an unknown coder or ``dense_dtype``, a dense value beyond its range, or a
                file that does not read back as what was written.
            FormatError: the file that this ticket was opened from is damaged.
            OSError: the target cannot be written.
        """
        with naming(self._file):
            tensors = [self._tensors[name] for name in self.names]  # ties stay ties
        encoded = encode_ticket(
            self._contents, tensors, coder=coder, dense_dtype=dense_dtype, on_tensor=on_tensor
        )
        return save(encoded, target)
