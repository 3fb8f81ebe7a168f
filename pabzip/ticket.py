"""The ticket: a network as a seed, one code a weight, and a few tensors trained as usual."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from bitarray import bitarray
from numpy.typing import NDArray

from pabzip.errors import FormatError, PackError
from pabzip.formats import (
    AUTO,
    Contents,
    DenseTensor,
    Reader,
    Scalar,
    SeededEntry,
    SeededTensor,
    StoredTensor,
    Tensor,
    TiedTensor,
    breakdown,
    encode_ticket,
    gather,
    open_source,
    report,
    resolve,
    save,
    state_sha256,
    verify,
)
from pabzip.formats.coder import Coded
from pabzip.formats.huffman import encode
from pabzip.seeds import InitSpec

__all__ = ["DenseTensor", "SeededTensor", "Ticket", "TicketReport", "TiedTensor"]

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO

FUSED_BACKEND = "numba"
"""The backend that decodes and regenerates in one pass; others regenerate from decoded codes."""


@dataclass(frozen=True, eq=False)
class TicketReport(Mapping[str, Any]):
    """The numbers of a ``.pabz`` file, as attributes and as a mapping: the keys of ``--json``.

    ``report.bytes`` and ``report["bytes"]`` are the same, and ``dict(report)`` is plain JSON.

    Attributes:
        bytes: of the file: ``header_bytes + codes_bytes + dense_bytes``.
        codes_bytes: of all seeded payload: masks, signs, factors, tables.
        dense_bytes: of dense tensors, and of scales of seeded tensors' rows.
        header_bytes: of the header and all checksums.
        weights: N, of all seeded tensors.
        survivors: K, those of them that are not pruned.
        huffman_bytes: what the paper's N + K bits would take, in whole bytes a tensor.
        float32_bytes: of the whole state as loaded: 4 a seeded weight, dense tensors in their own
            type.
        seed: the 64-bit Philox key.
        arch: name of the architecture, or ``"custom"``.
        sha256: of the regenerated state, 64 hexadecimal digits.
        tensors: one mapping a tensor: ``name``, ``shape``, ``dtype``, ``kind``, ``coder``,
            ``bytes``, ``weights``, ``survivors``, and ``target`` of a tied one; see
            `pabzip.formats.report.report`.
    """

    bytes: int
    codes_bytes: int
    dense_bytes: int
    header_bytes: int
    weights: int
    survivors: int
    huffman_bytes: int
    float32_bytes: int
    seed: int
    arch: str
    sha256: str
    tensors: list[dict[str, Any]]

    def __getitem__(self, key: str) -> Any:
        if key not in self.__dataclass_fields__:
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return (field.name for field in fields(self))

    def __len__(self) -> int:
        return len(fields(self))


class Ticket:
    """A network as a seed, one code a weight, and the few tensors trained in the ordinary way.

    The weights of a seeded tensor are never held: they are a function of the seed, its init spec
    and its codes, and are regenerated when asked for, to the bit, on any machine. A ticket that
    was opened from a file reads each tensor when it is asked for and keeps none.

    Every method that takes a name raises KeyError for an unknown one. A tied tensor answers as its
    target does; `tied` tells it apart.

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
        self._set(contents, {tensor.name: tensor for tensor in held}, None)

    def _set(self, contents: Contents, tensors: Mapping[str, Tensor], file: str | None) -> None:
        """Take what the ticket holds: tensors by name, which may be lazy, and the file's name."""
        self._contents, self._tensors, self._file = contents, tensors, file
        self._entries = {entry.name: entry for entry in contents.entries}

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
        ticket._set(reader.header.contents, reader, file)
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
    def seed(self) -> int:
        """The 64-bit Philox key."""
        return self._contents.seed

    @property
    def file(self) -> str | None:
        """Name of the file that the tensors are read from, for messages; None without one."""
        return self._file

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, in the order of the network's state."""
        return tuple(self._entries)

    def kind(self, name: str) -> str:
        """Return ``"seeded"`` or ``"dense"``."""
        return self._entries[name].original.kind

    def tied(self, name: str) -> str | None:
        """Return the name of the earlier tensor that this one is a second name of, or None."""
        return self._entries[name].target

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._entries[name].shape

    def dtype(self, name: str) -> str:
        """Return torch's name of a tensor's element type; seeded tensors are ``"float32"``."""
        return self._entries[name].dtype

    def spec(self, name: str) -> InitSpec:
        """Return how the base weights of a seeded tensor are drawn."""
        entry = self._entries[name].original
        if not isinstance(entry, SeededEntry):
            raise KeyError(_no_seeded(name))
        return entry.spec

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

    def codes(self, name: str) -> NDArray[np.int8]:
        """Return the codes of a seeded tensor.

        Returns:
            int8, the weight's shape: 0 pruned, +1 the seed's sign kept, -1 flipped.

        Raises:
            FormatError: the tensor's part of the file is damaged.
            KeyError: no seeded tensor of this name.
        """
        return self._seeded_tensor(name).codes

    def mask(self, name: str) -> bitarray:
        """Return which weights of a seeded tensor survive, one bit a weight.

        Returns:
            N bits, big-endian, in the weight's row-major order: 1 survives, 0 is pruned.

        Raises:
            FormatError, KeyError: as of `codes`.
        """
        return _bits(self.codes(name).reshape(-1) != 0)

    def signs(self, name: str) -> bitarray:
        """Return which survivors of a seeded tensor have their sign flipped, one bit a survivor.

        Returns:
            K bits, big-endian, in the weight's row-major order: 1 is flipped relative to the sign
            that the seed gave, 0 is as the seed gave it.

        Raises:
            FormatError, KeyError: as of `codes`.
        """
        codes = self.codes(name).reshape(-1)
        return _bits(codes[codes != 0] < 0)

    def bitstream(self, name: str) -> bitarray:
        """Return the codes of a seeded tensor as the paper writes them, whatever the file's coder.

        Returns:
            N + K bits for N weights with K survivors, big-endian, in the weight's row-major order:
            ``0`` is pruned, ``10`` keeps the seed's sign, ``11`` flips it.

        Raises:
            FormatError, KeyError: as of `codes`.

        Source: Peek-a-Boo, Appendix D, Figure 6.
        """
        codes = self.codes(name)
        bits = bitarray(endian="big")
        bits.frombytes(encode(codes))
        del bits[codes.size + np.count_nonzero(codes) :]
        return bits

    def scales(self, name: str) -> NDArray[np.float32] | None:
        """Return the scales of a seeded tensor's rows, float32 (rows,); None where it has none.

        Raises:
            FormatError: their part of the file is damaged.
            KeyError: no seeded tensor of this name.
        """
        self.spec(name)  # refuses a dense tensor
        if isinstance(self._tensors, Reader):
            with naming(self._file):
                return self._tensors.scales(name)
        return self._seeded_tensor(name).scales

    def dense(self, name: str) -> DenseTensor:
        """Return a dense tensor; its values as `DenseTensor` carries them.

        Raises:
            FormatError: the tensor's part of the file is damaged.
            KeyError: no dense tensor of this name.
        """
        tensor = self._tensor(name)
        if not isinstance(tensor, DenseTensor):
            raise KeyError(f"{name}: expected a dense tensor, found a seeded one")
        return tensor

    def weight(
        self, name: str, *, backend: str = "numba", threads: int | None = None
    ) -> NDArray[Any]:
        """Return any tensor as an ordinary array.

        Args:
            name: of a seeded or dense tensor.
            backend: of `pabzip.seeds.regenerate`; every backend gives the same bits.
            threads: likewise; None takes every CPU that the process may use.

        Returns:
            A seeded tensor regenerated, float32; a dense one in its own type, bfloat16 as float32
            of exactly the same values.

        Raises:
            FormatError: the tensor's part of the file is damaged.
            KeyError: no tensor of this name.
        """
        if backend == FUSED_BACKEND and self.kind(name) == "seeded":
            return self.weights([name], threads=threads)[name]
        return self._tensor(name).array(self.seed, backend=backend, threads=threads)

    def arrays(
        self, *, backend: str = "numba", threads: int | None = None
    ) -> dict[str, NDArray[Any]]:
        """Return every tensor by name, each as `weight` gives it."""
        if backend != FUSED_BACKEND or not isinstance(self._tensors, Reader):
            return {
                name: self.weight(name, backend=backend, threads=threads) for name in self.names
            }
        found: dict[str, NDArray[Any]] = {}

        def read_dense() -> None:
            """Read the dense tensors while other threads decode."""
            dense = [name for name in self.names if self.kind(name) == "dense"]
            found.update({name: self.weight(name) for name in dense})

        seeded = [name for name in self.names if self.kind(name) == "seeded"]
        with naming(self._file):
            found.update(self._tensors.weights(seeded, threads=threads, beside=[read_dense]))
        return {name: found[name] for name in self.names}

    def sha256(self, *, backend: str = "numba", threads: int | None = None) -> str:
        """Return the SHA-256 of the regenerated state, computed anew, as 64 hexadecimal digits.

        Raises:
            FormatError: a part of the file is damaged.

        Source: formats/SPEC.md, section "The digest".
        """
        tensors = (self._tensor(name) for name in self.names)
        return state_sha256(self.seed, tensors, backend=backend, threads=threads)

    def weights(
        self, names: Iterable[str], *, threads: int | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Regenerate seeded tensors, in one go where they come from a file.

        Args:
            names: of seeded tensors.
            threads: as for `weight`; the work of all tensors is spread over them.

        Returns:
            New float32 arrays of the tensors' shapes, by name.

        Raises:
            FormatError: a tensor's part of the file is damaged.
            KeyError: no seeded tensor of a name.
        """
        if isinstance(self._tensors, Reader):
            with naming(self._file):
                return self._tensors.weights(names, threads=threads)
        return {
            name: self._seeded_tensor(name).array(self.seed, backend=FUSED_BACKEND, threads=threads)
            for name in names
        }

    def coded(self, name: str) -> Coded | None:
        """Return a seeded tensor's bytes as the file has them, for those who decode them.

        Of a tied tensor this is the target, under the target's name.

        Returns:
            Its entry, payload and decoder; None where the ticket is in no file.

        Raises:
            FormatError: the tensor's part of the file is damaged.
            KeyError: no seeded tensor of this name.
        """
        if not isinstance(self._tensors, Reader):
            return None
        with naming(self._file):
            return self._tensors.coded(name)

    def verify(self, *, backend: str = "numba", threads: int | None = None) -> str:
        """Regenerate everything, and compare its SHA-256 with the file's own.

        Returns:
            The SHA-256. A ticket that is in no file has nothing to differ from.

        Raises:
            FormatError: the digests differ, or a part of the file is damaged.
        """
        if not isinstance(self._tensors, Reader):
            return self.sha256(backend=backend, threads=threads)
        with naming(self._file):
            return verify(self._tensors, backend=backend, threads=threads)

    def info(self) -> TicketReport:
        """Return the sizes of the file and its tensors, from the header alone.

        A ticket that is in no file is encoded to find them: they are those of the file that
        `save` would write.
        """
        if isinstance(self._tensors, Reader):
            return TicketReport(**report(self._tensors.header, self._tensors.header_bytes))
        encoded = encode_ticket(self._contents, self._tensors.values())
        return TicketReport(**report(encoded.header, len(encoded.start)))

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
    ) -> TicketReport:
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
            on_tensor: called with the name of each seeded tensor once it is encoded, from any
                thread; for progress bars.

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
        return TicketReport(**save(encoded, target))

    def _seeded_tensor(self, name: str) -> SeededTensor:
        """Return a seeded tensor; KeyError for another."""
        tensor = self._tensor(name)
        if not isinstance(tensor, SeededTensor):
            raise KeyError(_no_seeded(name))
        return tensor

    def _tensor(self, name: str) -> StoredTensor:
        """Return a tensor, read from the file if there is one; of a tied one the target."""
        with naming(self._file):
            return resolve(self._tensors, name)


def _no_seeded(name: str) -> str:
    """Return the message for a dense tensor where a seeded one is needed."""
    return f"{name}: expected a seeded tensor, found a dense one; read it with dense(name)"


@contextlib.contextmanager
def naming(file: str | None) -> Iterator[None]:
    """Add the file's name to a `FormatError`."""
    try:
        yield
    except FormatError as error:
        if file is None:
            raise
        raise error.in_file(file) from None


def _bits(values: NDArray[np.bool_]) -> bitarray:
    """Return booleans of one dimension as big-endian bits."""
    bits = bitarray(endian="big")
    bits.frombytes(np.packbits(values).tobytes())
    del bits[len(values) :]
    return bits
