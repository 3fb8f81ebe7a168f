"""The ticket: a network as a seed, one code a weight, and a few tensors trained as usual."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np
from bitarray import bitarray
from numpy.typing import NDArray

from pabzip.errors import FormatError, PackError
from pabzip.formats import (
    AUTO,
    Base,
    Contents,
    DeltaTensor,
    DenseTensor,
    Reader,
    Scalar,
    SeededEntry,
    SeededTensor,
    StoredTensor,
    Tensor,
    TernaryEntry,
    TernaryTensor,
    TiedTensor,
    bfloat16_to_float32,
    gather,
    open_source,
    state_sha256,
)
from pabzip.formats.ahead import Progress
from pabzip.formats.coder import Coded
from pabzip.formats.huffman import encode
from pabzip.formats.report import TicketReport, breakdown, report
from pabzip.formats.sources import SeekableSource
from pabzip.formats.ternary_layouts import SCALE_SUFFIX
from pabzip.formats.writer import reader_sha256, write_ticket
from pabzip.seeds import Frozen, InitSpec
from pabzip.ticket_tensors import FUSED_BACKEND, FaultsNamed, InMemory, naming

__all__ = [
    "DeltaTensor",
    "DenseTensor",
    "SeededTensor",
    "TernaryTensor",
    "Ticket",
    "TicketReport",
    "TiedTensor",
]

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | SeekableSource

GGUF_HEADER = "gguf.header"
"""Name of the dense tensor that keeps what a ``.gguf`` file holds beside its tensors."""


class Ticket:
    """A network as a seed, one code a weight, and the few tensors trained in the ordinary way.

    The weights of a seeded tensor are never held: they are a function of the seed, its init spec
    and its codes, and are regenerated when asked for, to the bit, on any machine. A ticket that
    was opened from a file reads each tensor when it is asked for and keeps none.

    Every method that takes a name raises KeyError for an unknown one, or one of the other kind of
    tensor; every method that reads on in the file raises FormatError where that part of it is
    damaged. A tied tensor answers as its target does; `tied` tells it apart.

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
        self._set(contents, InMemory(contents, held), None)

    def _set(self, contents: Contents, tensors: Reader | InMemory, file: str | None) -> None:
        """Take what the ticket holds: tensors by name, read or in memory, and the file's name."""
        self._contents, self._tensors, self._file = contents, tensors, file
        self._entries = {entry.name: entry for entry in contents.entries}

    @classmethod
    def open(
        cls, source: Source, *, max_bytes: int | None = None, base: Base | None = None
    ) -> Ticket:
        """Open a ``.pabz`` file; only its header is read.

        Args:
            source: a path (the file stays open until `close`), the file's bytes, or a binary
                stream, which is read from where it stands, to the end of the ticket, and kept.
            max_bytes: most bytes of the loaded state that the file may declare (`info`'s
                ``float32_bytes``); None takes 65,536 times the file, or 256 MiB if more.
            base: the tensors that the deltas of the file change (`pabzip.packing.base.open_base`
                opens them); closed with the ticket. Without it they cannot be read, all else can.

        Raises:
            FormatError: not a .pabz file, a newer version, or damaged.
            LimitError: the file declares more than ``max_bytes``.
            OSError: the path cannot be opened.
        """
        file = os.fspath(source) if isinstance(source, str | os.PathLike) else None
        opened = open_source(source)
        try:
            with naming(file):
                reader = Reader(opened, max_bytes=max_bytes, base=base)
        except BaseException:
            opened.close()
            raise
        ticket = cls.__new__(cls)
        ticket._set(reader.header.contents, reader, file)
        return ticket

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        place = "" if self._file is None else f" in {self._file!r}"
        return f"<Ticket {self.arch}, seed {self.seed}, {len(self.names)} tensors{place}>"

    def close(self) -> None:
        """Close the file of an opened ticket; reading a tensor afterwards raises ValueError."""
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
        """Return ``"seeded"``, ``"ternary"``, ``"delta"`` or ``"dense"``; its target's if tied."""
        return self._entries[name].original.kind

    def tied(self, name: str) -> str | None:
        """Return the name of the earlier tensor that this one is a second name of, or None."""
        return self._entries[name].target

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape; of a ternary one as it was stored."""
        return self._entries[name].shape

    def dtype(self, name: str) -> str:
        """Return torch's name of a tensor's element type; seeded tensors are ``"float32"``.

        Of a ternary tensor it is the type as it was stored: `plain` tells that of its weights.
        """
        return self._entries[name].dtype

    def spec(self, name: str) -> InitSpec:
        """Return how the base weights of a seeded tensor are drawn."""
        entry = self._entries[name].original
        if not isinstance(entry, SeededEntry):
            raise KeyError(
                f"{name}: expected a seeded tensor, found a {entry.kind} one; read it with "
                "weight(name)"
            )
        return entry.spec

    def frozen(self, name: str) -> Frozen | None:
        """Return how much of a seeded tensor's mask the seed fixes; None where it fixes none."""
        self.spec(name)
        entry = self._entries[name].original
        assert isinstance(entry, SeededEntry)
        return entry.frozen

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
        """Return the codes of a seeded or ternary tensor.

        Returns:
            int8, the weight's shape: 0 pruned, +1 the seed's sign kept, -1 flipped; of a ternary
            tensor the sign of each weight.
        """
        if self.kind(name) == TernaryEntry.kind:
            return self._ternary(name).codes()
        self.spec(name)  # refuses a dense tensor
        tensor = self.tensor(name)
        assert isinstance(tensor, SeededTensor)
        return tensor.codes

    def _ternary(self, name: str, threads: int | None = None) -> TernaryTensor:
        """Return a ternary tensor."""
        tensor = self.tensor(name, threads=threads)
        assert isinstance(tensor, TernaryTensor)
        return tensor

    def mask(self, name: str) -> bitarray:
        """Return which weights of a seeded or ternary tensor survive, one bit a weight.

        Returns:
            N bits, big-endian, in the weight's row-major order: 1 survives, 0 is pruned.
        """
        return _bits(self.codes(name).reshape(-1) != 0)

    def signs(self, name: str) -> bitarray:
        """Return which survivors of a seeded tensor have their sign flipped, one bit a survivor.

        Returns:
            K bits, big-endian, in the weight's row-major order: 1 is flipped relative to the sign
            that the seed gave, 0 is as the seed gave it. Of a ternary tensor 1 is negative.
        """
        codes = self.codes(name).reshape(-1)
        return _bits(codes[codes != 0] < 0)

    def bitstream(self, name: str) -> bitarray:
        """Return the codes of a tensor as the paper writes them, whatever the file's coder.

        Returns:
            N + K bits for N weights with K survivors, big-endian, in the weight's row-major order:
            ``0`` is pruned, ``10`` keeps the seed's sign, ``11`` flips it.

        Source: Peek-a-Boo, Appendix D, Figure 6.
        """
        codes = self.codes(name)
        bits = bitarray(endian="big")
        bits.frombytes(encode(codes))
        return bits[: codes.size + np.count_nonzero(codes)]

    def scales(self, name: str) -> NDArray[np.float32] | None:
        """Return the scales of a seeded tensor's rows, float32 (rows,); None where it has none."""
        self.spec(name)
        with naming(self._file):
            return self._tensors.scales(name)

    def dense(self, name: str) -> DenseTensor:
        """Return a dense tensor; its values as `DenseTensor` carries them."""
        tensor = self.tensor(name)
        if not isinstance(tensor, DenseTensor):
            raise KeyError(f"{name}: expected a dense tensor, found a {self.kind(name)} one")
        return tensor

    def tensor(self, name: str, *, threads: int | None = None) -> StoredTensor:
        """Return a tensor of any kind, as the ticket holds it; of a tied one the target.

        It is decoded on at most so many threads; None takes every CPU that the process may use.
        """
        with naming(self._file):
            return self._tensors.resolved(name, threads)

    def weight(
        self, name: str, *, backend: str = "numba", threads: int | None = None
    ) -> NDArray[Any]:
        """Return any tensor as plain weights; bfloat16 as float32 of exactly the same values.

        Arguments are as for `exact`, and what it returns is as of `plain` otherwise.
        """
        return _widened(self.plain(name, backend=backend, threads=threads))

    def plain(
        self,
        name: str,
        *,
        bitnet_scale: str | None = None,
        backend: str = "numba",
        threads: int | None = None,
    ) -> DenseTensor:
        """Return any tensor as plain weights, in memory: a dense tensor.

        Args:
            name: of a tensor of any kind.
            bitnet_scale: ``"divide"`` or ``"multiply"``: what transformers does with the scale of a
                ternary tensor in its layout (BitLinear divides, AutoBitLinear multiplies), where
                the file does not say.
            backend: as for `exact`.
            threads: as for `exact`.

        Returns:
            What `exact` gives and its element type. A ternary tensor in a layout of its own
            (several weights a byte) comes as its weights, in the type of its scale.

        Raises:
            ArchitectureError: neither the file nor ``bitnet_scale`` says what to do with a scale,
                they contradict each other, or there is no such scale.
        """
        if self.kind(name) != TernaryEntry.kind:
            values = self.exact(name, backend=backend, threads=threads)
            return DenseTensor(name, values, self.dtype(name), self.dtype(name))
        found, scale = self._ternary(name, threads), None
        for owner in (name, self.tied(name)):
            held = f"{owner}{SCALE_SUFFIX}"
            if scale is None and held in self._entries:  # of any kind: (1, 1) may be seeded
                dtype = self.dtype(held)
                values = self.exact(held, backend=backend, threads=threads)
                scale = DenseTensor(held, values, dtype, dtype)
        return found.plain(scale, scaling=bitnet_scale, backend=backend, threads=threads)

    def plain_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of what `plain` returns."""
        entry = self._entries[name].original
        return entry.weights_shape if isinstance(entry, TernaryEntry) else entry.shape

    def plain_dtype(self, name: str) -> str:
        """Return torch's name of the element type of what `plain` returns."""
        entry = self._entries[name].original
        if not isinstance(entry, TernaryEntry) or entry.layout == "plain":
            return entry.dtype
        if entry.layout != "bitnet":
            return "float16"
        scales = (f"{owner}{SCALE_SUFFIX}" for owner in (name, self.tied(name)))
        return next((self.dtype(one) for one in scales if one in self._entries), entry.dtype)

    @property
    def plain_names(self) -> tuple[str, ...]:
        """Names of what is left once all tensors are plain weights.

        All but the scales that are then part of the weights, and the start of a ``.gguf`` file.
        """
        applied = {
            name + SCALE_SUFFIX
            for name, entry in self._entries.items()
            if isinstance(entry.original, TernaryEntry) and entry.original.layout == "bitnet"
        }
        return tuple(name for name in self.names if name not in {GGUF_HEADER, *applied})

    def exact(
        self, name: str, *, backend: str = "numba", threads: int | None = None
    ) -> NDArray[Any]:
        """Return any tensor as it was stored: an array of its own type.

        Args:
            name: of a tensor of any kind.
            backend: of `pabzip.seeds.regenerate`; every backend gives the same bits.
            threads: likewise; None takes every CPU that the process may use.

        Returns:
            A seeded tensor regenerated, float32; a dense or ternary one as it was, bfloat16 as
            uint16 bit patterns. It may be the ticket's own memory.
        """
        if backend == FUSED_BACKEND and self.kind(name) == "seeded":
            return self.weights([name], threads=threads)[name]
        tensor = self.tensor(name, threads=threads)
        return tensor.array(self.seed, backend=backend, threads=threads)

    def arrays(
        self,
        *,
        as_stored: bool = False,
        bitnet_scale: str | None = None,
        backend: str = "numba",
        threads: int | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Return every tensor of `plain_names` by name, each as `weight` gives it.

        Args:
            as_stored: return every tensor as `exact` gives it instead, bfloat16 as float32.
            bitnet_scale: as for `plain`.
            backend: as for `exact`.
            threads: as for `exact`.
        """
        together = backend == FUSED_BACKEND
        names = self.names if as_stored else self.plain_names
        fused = [name for name in names if together and self.kind(name) == "seeded"]
        found: dict[str, NDArray[Any]] = {}

        def read_rest() -> None:
            """Read the other tensors while other threads decode."""
            for name in names:
                if name not in fused:
                    one = self.state_tensor(
                        name,
                        as_stored=as_stored,
                        bitnet_scale=bitnet_scale,
                        backend=backend,
                        threads=threads,
                    )
                    found[name] = _widened(one)

        with naming(self._file):
            found.update(self._tensors.weights(fused, threads=threads, beside=[read_rest]))
        return {name: found[name] for name in names}

    def state_tensor(
        self,
        name: str,
        *,
        as_stored: bool = False,
        bitnet_scale: str | None = None,
        backend: str = "numba",
        threads: int | None = None,
    ) -> DenseTensor:
        """Return a tensor as `plain` does, or with ``as_stored`` what `exact` gives, as one."""
        if not as_stored:
            return self.plain(name, bitnet_scale=bitnet_scale, backend=backend, threads=threads)
        values = self.exact(name, backend=backend, threads=threads)
        return DenseTensor(name, values, self.dtype(name), self.dtype(name))

    def sha256(
        self,
        *,
        backend: str = "numba",
        threads: int | None = None,
        on_progress: Progress | None = None,
    ) -> str:
        """Return the SHA-256 of the regenerated state, computed anew, as 64 hexadecimal digits.

        Of a file, a tensor is decoded while the one before it is hashed, and large ones are held
        one at a time. ``on_progress`` is called with ``"verifying"`` and the bytes of the loaded
        state that were hashed since the last call.

        Source: formats/SPEC.md, section "The digest".
        """
        if isinstance(self._tensors, Reader):
            with naming(self._file):
                return reader_sha256(
                    self._tensors, backend=backend, threads=threads, on_progress=on_progress
                )
        tensors = (self.tensor(name) for name in self.names)
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
        """
        names = list(names)
        for name in names:
            self.spec(name)
        with naming(self._file):
            return self._tensors.weights(names, threads=threads)

    def coded(self, name: str) -> Coded | None:
        """Return a seeded tensor's bytes as the file has them, for those who decode them.

        Of a tied tensor this is the target, under the target's name.

        Returns:
            Its entry, payload and decoder; None where the ticket is in no file.
        """
        self.spec(name)
        with naming(self._file):
            return self._tensors.coded(name)

    def verify(self, *, backend: str = "numba", threads: int | None = None) -> str:
        """Regenerate everything, and compare its SHA-256 with the file's own.

        Returns:
            The SHA-256. A ticket that is in no file has nothing to differ from.

        Raises:
            FormatError: the digests differ, or a part of the file is damaged.
        """
        found = self.sha256(backend=backend, threads=threads)
        with naming(self._file):
            self._tensors.check_sha256(found)
        return found

    def check_base(self) -> None:
        """Read the base of a file of changes, and compare its digest with the file's.

        Reading the first delta does so, too; a file without deltas has no base.

        Raises:
            BaseFileError: there is none, or it is another than the file was packed on.
        """
        if isinstance(self._tensors, Reader):
            self._tensors.base.check()

    def info(self) -> TicketReport:
        """Return the sizes of the file and its tensors, from the header alone.

        A ticket that is in no file is encoded first, as `save` would do it.
        """
        reader = self._tensors.in_file()
        return report(reader.header, reader.header_bytes)

    def breakdown(self) -> list[dict[str, Any]]:
        """Return where the bytes of `info` go, tensor by tensor: `pabzip.formats.report`.

        Reads the header and the side stream. A ticket that is in no file is encoded, as by `info`.
        """
        reader = self._tensors.in_file()
        with naming(self._file):
            return breakdown(reader.header, reader.header_bytes, reader.side_stream())

    def save(
        self,
        target: str | os.PathLike[str] | BinaryIO,
        *,
        coder: str = AUTO,
        dense_dtype: str | None = None,
        on_tensor: Callable[[str], None] | None = None,
        on_progress: Progress | None = None,
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
            on_tensor: called with the name of each seeded tensor once encoded, from any thread.
            on_progress: called with what is being done (``"packing"``, ``"encoding"``,
                ``"verifying"``) and the bytes of the loaded state done since the last call.

        Returns:
            The numbers of `info`, of the file that was written.

        Raises:
            PackError: an unknown coder or ``dense_dtype``, a dense value beyond its range, or a
                file that does not read back as what was written.
            FormatError: the file that this ticket was opened from is damaged.
            OSError: the target cannot be written.
        """
        return write_ticket(
            self._contents,
            FaultsNamed(self._tensors, self._file),  # ties stay ties
            target,
            coder=coder,
            dense_dtype=dense_dtype,
            on_tensor=on_tensor,
            on_progress=on_progress,
            sizes={entry.name: entry.loaded_bytes for entry in self._contents.entries},
        )


def _widened(tensor: DenseTensor) -> NDArray[Any]:
    """Return a tensor's values, bfloat16 as float32."""
    bits = tensor.dtype == "bfloat16"
    return bfloat16_to_float32(tensor.values) if bits else tensor.values


def _bits(values: NDArray[np.bool_]) -> bitarray:
    """Return booleans of one dimension as big-endian bits."""
    bits = bitarray(endian="big")
    bits.pack(values.tobytes())
    return bits
