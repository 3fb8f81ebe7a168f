"""Write a .pabz file: encode tensor by tensor, verify what was written, replace the old file."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from pabzip.errors import BaseFileError, FormatError, PackError
from pabzip.formats.ahead import Progress, one_ahead
from pabzip.formats.atomic import open_atomic, open_scratch
from pabzip.formats.coder import AUTO, OnTensor, check_coder, encode_codes
from pabzip.formats.container import checksum, encode_header
from pabzip.formats.contents import Contents, Gathering, Header, Tensor
from pabzip.formats.delta_base import Base, BaseOfDeltas
from pabzip.formats.dense import DenseTensor, check_dense_dtype, rounded
from pabzip.formats.dense_sections import DenseGroup, encode_group
from pabzip.formats.digest import StateDigest
from pabzip.formats.kind import Coding
from pabzip.formats.limits import DENSE_SECTION_BYTES, MAX_INTEGER, tensor_place
from pabzip.formats.reader import Reader
from pabzip.formats.report import TicketReport, report
from pabzip.formats.seeded import SeededTensor
from pabzip.formats.sources import SeekableSource, open_source
from pabzip.seeds.generation import thread_count

_PIECE = 8 << 20  # bytes that are hashed or copied at a time
_SECTIONS_AT_ONCE = 4  # encoded on threads, before the first of them must be written


@dataclass(frozen=True, slots=True)
class EncodedFile:
    """A file, compressed: its header and codes in memory, its dense sections in a scratch file.

    Attributes:
        header: what it declares.
        start: its bytes before the first section.
        payloads: of the side stream and the codes, in order.
        dense: the dense sections with their checksums, as `open_scratch` gives it.
        base: what its deltas change; reading back needs it.
    """

    header: Header
    start: bytes
    payloads: tuple[bytes, ...]
    dense: BinaryIO
    base: Base

    def write(self, stream: BinaryIO) -> None:
        """Write the file to a binary stream, which may take it in pieces (a pipe, say)."""
        write_all(stream, self.start)
        for payload in self.payloads:
            write_all(stream, payload)
            write_all(stream, checksum(payload))
        copy_all(self.dense, stream)


def copy_all(source: BinaryIO, stream: BinaryIO) -> None:
    """Write all of a seekable file, from its start, to another."""
    source.seek(0)
    while piece := source.read(_PIECE):
        write_all(stream, piece)


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
    tensors: Iterable[Tensor] | Mapping[str, Tensor],
    *,
    coder: str = AUTO,
    dense_dtype: str | None = None,
    on_tensor: OnTensor | None = None,
    on_progress: Progress | None = None,
    sizes: Mapping[str, int] | None = None,
    scratch: BinaryIO | None = None,
) -> EncodedFile:
    """Encode a ticket, tensor by tensor; arguments as for `pabzip.Ticket.save`.

    Each tensor is read, checked, hashed and encoded, and then let go of; only codes of seeded
    tensors stay in memory, because a coder may need them all.

    Args:
        contents: what the ticket holds but its tensors.
        tensors: in the order of the network's state. A mapping by name may be lazy: it is asked
            once for each tensor, on a thread of its own, and again for one that others are tied to.
        coder: for the codes of every seeded tensor; ``"auto"`` takes the smallest for each.
        dense_dtype: what to round wider dense tensors to, or None.
        on_tensor: called with the name of each seeded tensor that is encoded, from any thread.
        on_progress: told of ``"packing"``, and of ``"encoding"`` for the codes.
        sizes: bytes of the tensors of a lazy mapping, so that large ones are not read ahead.
        scratch: where the dense sections go, see `open_scratch`; None for memory.

    Raises:
        PackError: the ticket breaks a rule of the format, an unknown coder or ``dense_dtype``, or
            a dense value beyond its range.
    """
    check_coder(coder)
    check_dense_dtype(dense_dtype)
    if not isinstance(tensors, Mapping):
        tensors = _Listed(tensors)
    if scratch is None:
        scratch = io.BytesIO()
    tell = on_progress or (lambda _what, _count: None)

    def made(name: str) -> Tensor:
        try:
            return rounded(tensors[name], dense_dtype)
        except FormatError as error:
            raise _UnreadableError(error) from error

    try:
        gathering = Gathering(contents.seed, contents.arch, contents.options, contents.metadata)
        digest = StateDigest(contents.seed, on_bytes=lambda count: tell("packing", count))
        seeded: list[SeededTensor] = []
        base = BaseOfDeltas()
        with ThreadPoolExecutor(1, "pabzip-hash") as hashing, _DenseSections(scratch) as sections:
            for tensor in one_ahead(tensors, made, lambda name: (sizes or {}).get(name, 0)):
                tensor = gathering.add(tensor)
                hashed = hashing.submit(digest.add, tensor.resolve(_Again(made)))
                sections.add(tensor.parts)
                base.add(tensor)
                if isinstance(tensor, SeededTensor):
                    seeded.append(tensor)
                hashed.result()
                del tensor, hashed  # before the next is read
        found = gathering.contents()
        names, codes, side = encode_codes(
            found.seed, seeded, coder, _counted(seeded, on_tensor, tell)
        )
        codings = tuple(map(Coding, names, map(len, codes)))
        header = Header(
            found, digest.hexdigest(), codings, tuple(sections.groups), len(side), base.sha256
        )
        sides = (side,) if side else ()
        return EncodedFile(header, encode_header(header), (*sides, *codes), scratch, base)
    except FormatError as error:
        raise PackError(str(error)) from None
    except _UnreadableError as error:
        raise error.fault from None


class _UnreadableError(Exception):
    """The fault of a file that the tensors come from, which is no fault of the ticket."""

    def __init__(self, fault: FormatError):
        super().__init__(str(fault))
        self.fault = fault


class _Listed(dict[str, Tensor]):
    """Tensors in memory by name, in their order; a name that occurs twice is told apart."""

    def __init__(self, tensors: Iterable[Tensor]):
        super().__init__()
        for tensor in tensors:
            name = getattr(tensor, "name", None)
            # The validator refuses what is no tensor, has no name, or one that occurred before.
            self[name if isinstance(name, str) and name not in self else object()] = tensor  # type: ignore[index]


class _Again(Mapping[str, Tensor]):
    """The tensors of a ticket for those that are tied to them: each is made anew, and checked."""

    def __init__(self, make: Callable[[str], Tensor]):
        self._make = make

    def __getitem__(self, name: str) -> Tensor:
        return self._make(name).tidy(tensor_place(name))

    def __iter__(self) -> Iterator[str]:
        raise NotImplementedError("only asked for single tensors")

    __len__ = __iter__  # type: ignore[assignment]


def _counted(
    seeded: Sequence[SeededTensor], on_tensor: OnTensor | None, tell: Progress
) -> OnTensor:
    """Return a callback for coders that also tells the bytes of each tensor that is encoded."""
    sizes = {tensor.name: 4 * tensor.codes.size for tensor in seeded}

    def done(name: str) -> None:
        tell("encoding", sizes[name])
        if on_tensor is not None:
            on_tensor(name)

    return done


class _DenseSections:
    """Dense tensors on their way into sections, and those into a scratch file, in order.

    Small tensors gather until their section is full, and such sections are encoded on threads; a
    large one is encoded at once and not kept.

    Attributes:
        groups: the sections so far, in order; complete after the ``with`` block.
    """

    def __init__(self, scratch: BinaryIO):
        self.groups: list[DenseGroup] = []
        self._scratch = scratch
        self._waiting: list[DenseTensor] = []
        self._bytes = 0
        self._pool = ThreadPoolExecutor(thread_count(None), thread_name_prefix="pabzip-encode")
        self._pending: deque[tuple[int, Future[tuple[str, bytes]]]] = deque()

    def __enter__(self) -> _DenseSections:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            if error is None:
                self._end_section()
                self._write_pending(0)
        finally:
            self._pool.shutdown(cancel_futures=True)

    def add(self, parts: Sequence[DenseTensor]) -> None:
        """Take the next dense tensors.

        A section is filled up to `DENSE_SECTION_BYTES`; a tensor that is larger is alone in its
        own.
        """
        for part in parts:
            size = part.entry({}).stored_bytes
            if self._bytes + size > DENSE_SECTION_BYTES:
                self._end_section()
            if size > DENSE_SECTION_BYTES:
                encoding, payload = encode_group([part])
                self._write_pending(0)
                self._write(1, encoding, payload)
            else:
                self._waiting.append(part)
                self._bytes += size

    def _end_section(self) -> None:
        """Encode the tensors that wait as one section."""
        if self._waiting:
            group, self._waiting, self._bytes = self._waiting, [], 0
            self._pending.append((len(group), self._pool.submit(encode_group, group)))
            self._write_pending(_SECTIONS_AT_ONCE)

    def _write_pending(self, most: int) -> None:
        """Write sections that are encoded until at most so many are pending."""
        while len(self._pending) > most:
            count, encoded = self._pending.popleft()
            self._write(count, *encoded.result())

    def _write(self, count: int, encoding: str, payload: bytes) -> None:
        """Write one section and its checksum."""
        self.groups.append(DenseGroup(count, encoding, len(payload)))
        write_all(self._scratch, payload)
        write_all(self._scratch, checksum(payload))


def write_ticket(
    contents: Contents,
    tensors: Iterable[Tensor] | Mapping[str, Tensor],
    target: str | os.PathLike[str] | BinaryIO,
    *,
    before_saving: Callable[[], object] | None = None,
    on_progress: Progress | None = None,
    **options: Any,
) -> TicketReport:
    """Encode a ticket as `encode_ticket` does, and `save` it; tensors are held one at a time.

    Args:
        contents: as for `encode_ticket`.
        tensors: likewise.
        target: a path, or a binary stream.
        before_saving: called once all tensors were read; an error of it leaves the target alone.
        on_progress: told of ``"packing"``, ``"encoding"`` and ``"verifying"``.
        options: the other arguments of `encode_ticket`.
    """
    beside = target if isinstance(target, str | os.PathLike) else None
    with open_scratch(beside) as scratch:
        encoded = encode_ticket(
            contents, tensors, scratch=scratch, on_progress=on_progress, **options
        )
        if before_saving is not None:
            before_saving()
        return save(encoded, target, on_progress=on_progress)


def save(
    encoded: EncodedFile,
    target: str | os.PathLike[str] | BinaryIO,
    *,
    on_progress: Progress | None = None,
) -> TicketReport:
    """Write an encoded file to a path or stream, verified; see `pabzip.Ticket.save`.

    Returns:
        Its numbers.

    Raises:
        PackError: it does not read back as what was written.
        OSError: the target cannot be written.
    """
    if isinstance(target, str | os.PathLike):
        check = partial(_read_back, base=encoded.base, on_progress=on_progress)
        with open_atomic(target, check=check) as stream:
            encoded.write(stream)
    else:
        with open_scratch() as whole:
            encoded.write(whole)
            _read_back(whole, base=encoded.base, on_progress=on_progress)
            copy_all(whole, target)
        target.flush()
    return report(encoded.header, len(encoded.start))


def verify(
    reader: Reader,
    *,
    backend: str = "numba",
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> str:
    """Read and regenerate everything, and return its SHA-256 if it is the file's own.

    Args:
        reader: of the file; a tensor is decoded while the one before it is hashed.
        backend: of `pabzip.seeds.regenerate`; every backend gives the same digest.
        threads: likewise.
        on_progress: told of ``"verifying"``.

    Raises:
        FormatError: the digests differ, or a part of the file is damaged.
    """
    found = reader_sha256(reader, backend=backend, threads=threads, on_progress=on_progress)
    reader.check_sha256(found)
    return found


def reader_sha256(
    reader: Reader,
    *,
    backend: str = "numba",
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> str:
    """Return the SHA-256 of what a file regenerates to; arguments as for `verify`."""
    contents = reader.header.contents
    sizes = {entry.name: entry.loaded_bytes for entry in contents.entries}
    tell = on_progress or (lambda _what, _count: None)
    state = StateDigest(
        contents.seed,
        backend=backend,
        threads=threads,
        on_bytes=lambda count: tell("verifying", count),
    )
    for tensor in one_ahead(sizes, partial(reader.resolved, threads=threads), sizes.__getitem__):
        state.add(tensor)
        del tensor  # before the next is read
    return state.hexdigest()


def _read_back(written: Path | BinaryIO, *, base: Base, on_progress: Progress | None) -> None:
    """Open a file that was just written, and verify it."""
    source = open_source(written) if isinstance(written, Path) else SeekableSource(written)
    try:
        # No limit: what is written is at hand.
        verify(Reader(source, max_bytes=MAX_INTEGER, base=base), on_progress=on_progress)
    except (FormatError, BaseFileError) as error:
        raise PackError(
            f"expected what was written to read back, found a fault ({error}); nothing was kept: "
            "check the disk and memory of this machine"
        ) from error
    finally:
        source.close()
