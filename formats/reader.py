"""Read a file: its header at once, its tensors when they are asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.formats.coder import Coded, Decoder, Task, coder_named, run_tasks, shares_side
from pabzip.formats.container import (
    CHECKSUM_BYTES,
    Section,
    check_extent,
    read_header,
    read_section,
    sections,
)
from pabzip.formats.contents import StoredTensor, Tensor
from pabzip.formats.delta_base import Base, CheckedBase
from pabzip.formats.dense import DenseEntry, DenseTensor
from pabzip.formats.dense_sections import DenseGroup, decode_group, grouped
from pabzip.formats.limits import DENSE_SECTION_BYTES, check_loaded_bytes, tensor_place
from pabzip.formats.seeded import check_scales, scale_rows, settle
from pabzip.formats.sources import Source
from pabzip.seeds import regenerate


@dataclass(frozen=True, slots=True, eq=False)
class _GroupPlace:
    """Where the tensors of a dense section are."""

    entries: Sequence[DenseEntry]
    group: DenseGroup
    section: Section

    @property
    def small(self) -> bool:
        """Whether its tensors may be kept for the next one that is asked for."""
        return sum(entry.loaded_bytes for entry in self.entries) <= DENSE_SECTION_BYTES


class Reader(Mapping[str, Tensor]):
    """The tensors of a file, by name, in the order of the file; each is read when asked for.

    Nothing is kept between calls but the last small dense section, so memory stays near the size
    of what is asked for. Several threads may read at once.

    Args:
        source: where the bytes come from; closed by `close`.
        max_bytes: most bytes of the loaded state (float32 for seeded tensors, their own type for
            dense ones); None takes 65,536 times the size of the file, or 256 MiB if that
            is more; no ticket of a trained network comes near.
        base: what the tensors of kind ``delta`` change. It is read, and its digest compared with
            the header's, with the first of them; `BaseFileError` says where it is missing or
            another. Closed by `close`.

    Attributes:
        header: what the file declares.
        header_bytes: bytes of the file before its first section.
        base: the base, checked before its first tensor is handed out.

    Raises:
        FormatError: not a file of this format, or one that breaks its rules. Every fault that is
            found later, while reading a tensor, raises it, too, and a name that is not there
            KeyError.
        LimitError: the file declares more than ``max_bytes``.
    """

    def __init__(self, source: Source, *, max_bytes: int | None = None, base: Base | None = None):
        self._source = source
        self.header, self.header_bytes = read_header(source)
        contents = self.header.contents
        places = list(sections(self.header, self.header_bytes))
        size = self.header_bytes + sum(place.length + CHECKSUM_BYTES for place in places)
        check_loaded_bytes(contents.loaded_bytes, contents.expanded_bytes, max_bytes, size)
        check_extent(source, size)
        self.base = CheckedBase(base, contents.based, self.header.base)
        remaining = iter(places)
        self._side = next(remaining) if self.header.side else None
        self._codes = {
            entry.name: (entry, coding.coder, next(remaining))
            for entry, coding in zip(contents.seeded, self.header.codings, strict=True)
        }
        self._parts: dict[str, list[tuple[_GroupPlace, int]]] = {}
        for group, entries in grouped(contents.dense, self.header.groups):
            place = _GroupPlace(entries, group, next(remaining))
            for at, entry in enumerate(entries):
                self._parts.setdefault(entry.name, []).append((place, at))
        self._entries = {entry.name: entry for entry in contents.entries}
        self._decoders: dict[str, Decoder] = {}
        self._last: tuple[_GroupPlace, list[DenseTensor]] | None = None

    def __getitem__(self, name: str) -> Tensor:
        return self._read(name, None)

    def resolved(self, name: str, threads: int | None = None) -> StoredTensor:
        """Return one tensor, of a tied one the target under the tied name, as `resolve` does.

        It is decoded on at most so many threads; None takes every CPU that the process may use.
        """
        tensor = self._read(self._entries[name].original.name, threads)
        return cast(StoredTensor, tensor if tensor.name == name else replace(tensor, name=name))

    def _read(self, name: str, threads: int | None) -> Tensor:
        """Read one tensor."""
        entry = self._entries[name]
        codes = self._read_codes(name, threads) if name in self._codes else None
        tensor = entry.tensor(codes, self._read_parts(name, threads))
        return tensor.on_base(partial(self.base.read, entry)) if entry.based else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def weights(
        self,
        names: Iterable[str],
        *,
        threads: int | None = None,
        beside: Sequence[Task] = (),
    ) -> dict[str, NDArray[np.float32]]:
        """Regenerate seeded tensors straight from the file, the work of all spread over threads.

        Where a coder can, codes are never written out, and only active weights are drawn. The bits
        are those of `pabzip.seeds.regenerate`.

        Args:
            names: of seeded tensors, tied ones among them.
            threads: at most so many; None takes every CPU that the process may use.
            beside: other work for the same threads, taken up first.

        Returns:
            float32 arrays of the tensors' shapes, by name.
        """
        found: dict[str, NDArray[np.float32]] = {}
        scales: dict[str, NDArray[np.float32] | None] = {}
        tasks: list[Task] = [*beside]
        for name in names:
            coded = self.coded(name)
            weights = np.zeros(coded.entry.count, dtype=np.float32)
            with _in_tensor(name):
                if coded.entry.frozen is None:
                    work = coded.decoder.weights(coded.entry, coded.payload, weights)
                else:
                    work = [partial(self._frozen_weights, coded, weights)]
            tasks += [_in_tensor(name)(task) for task in work]
            found[name] = weights.reshape(coded.entry.shape)
            scales[name] = self.scales(name)
        run_tasks(tasks, threads)
        for name, array in found.items():
            scale_rows(array, scales[name])
        return found

    def coded(self, name: str) -> Coded:
        """Read a seeded tensor's section, and what it takes to decode it, but do not decode it.

        Of a tied tensor this is the target's; so is the name of the entry.
        """
        entry, coder, section = self._codes[self._entries[name].original.name]
        return Coded(entry, read_section(self._source, section), self._decoder(coder))

    def scales(self, name: str) -> NDArray[np.float32] | None:
        """Return the scales of a seeded tensor's rows, float32 (rows,), or None without any."""
        target = self._entries[name].original.name
        if target not in self._codes or target not in self._parts:
            return None
        return check_scales(name, self._read_parts(target)[0].values)

    def side_stream(self) -> bytes:
        """Read what coders share between tensors; empty where the file has no side stream."""
        return b"" if self._side is None else bytes(read_section(self._source, self._side))

    def in_file(self) -> Reader:
        """Return itself, as tensors in memory return a reader of the file they would make."""
        return self

    def check_sha256(self, found: str) -> None:
        """Compare the digest of the regenerated state with the file's own."""
        expected = self.header.sha256
        if found != expected:
            raise FormatError(
                "state",
                f"expected SHA-256 {expected}, found {found} regenerated; the file is damaged, or "
                "not written by pabzip",
            )

    def close(self) -> None:
        """Close the source, and the base."""
        self._source.close()
        self.base.close()

    def _read_codes(self, name: str, threads: int | None) -> NDArray[np.int8]:
        """Read the codes of one seeded tensor, in its shape."""
        coded = self.coded(name)
        with _in_tensor(name):
            return self._decoded(coded, threads).reshape(coded.entry.shape)

    def _decoded(self, coded: Coded, threads: int | None) -> NDArray[np.int8]:
        """Return the codes of one seeded tensor, flat."""
        codes = coded.entry.marks(self.header.contents.seed, threads)
        run_tasks(coded.decoder.codes(coded.entry, coded.payload, codes), threads)
        if coded.entry.frozen is not None:
            settle(codes)
        return codes

    def _frozen_weights(self, coded: Coded, out: NDArray[np.float32]) -> None:
        """Write the weights of a tensor whose mask the seed freezes in part."""
        codes = self._decoded(coded, 1)
        regenerate(self.header.contents.seed, coded.entry.spec, codes, threads=1, out=out)

    def _read_parts(self, name: str, threads: int | None = None) -> list[DenseTensor]:
        """Read what the dense sections hold of one tensor, with values of its own."""
        found = []
        for place, at in self._parts.get(name, []):
            part = self._read_group(place, threads)[at]
            shared = place.small or not part.values.flags.writeable
            found.append(replace(part, values=part.values.copy()) if shared else part)
        return found

    def _decoder(self, name: str) -> Decoder:
        """Return a coder's decoder for this file, prepared once."""
        if name not in self._decoders:
            entries = [entry for entry, coder, _ in self._codes.values() if coder == name]
            side = self.side_stream() if shares_side(name) else b""
            coder = coder_named(name, "header")
            self._decoders[name] = coder.decoder(self.header.contents.seed, entries, side)
        return self._decoders[name]

    def _read_group(self, place: _GroupPlace, threads: int | None) -> list[DenseTensor]:
        """Read the tensors of one dense section; the last small one is kept."""
        last = self._last
        if last is not None and last[0] is place:
            return last[1]
        payload = read_section(self._source, place.section)
        tensors = decode_group(
            place.entries, place.group.encoding, payload, place.section.place, threads=threads
        )
        if place.small:
            self._last = (place, tensors)
        return tensors


@contextlib.contextmanager
def _in_tensor(name: str) -> Iterator[None]:
    """Say which tensor a fault of its codes is in."""
    try:
        yield
    except FormatError as error:
        raise FormatError(tensor_place(name), error.problem) from None
