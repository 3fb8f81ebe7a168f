"""Read a file: its header at once, its tensors when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pabzip.errors import FormatError
from pabzip.formats.checks import shown
from pabzip.formats.coders import Decode, coder_named
from pabzip.formats.container import (
    CHECKSUM_BYTES,
    Section,
    check_extent,
    read_header,
    read_section,
    sections,
)
from pabzip.formats.dense import decode_group
from pabzip.formats.entries import DenseEntry, DenseGroup, SeededEntry
from pabzip.formats.registry import DENSE_SECTION_BYTES
from pabzip.formats.sources import Source
from pabzip.formats.tensors import DenseTensor, SeededTensor, Tensor
from pabzip.formats.validate import check_limit, grouped


@dataclass(frozen=True, slots=True)
class _CodesPlace:
    """Where a seeded tensor is, and what decodes it."""

    entry: SeededEntry
    coder: str
    section: Section


@dataclass(frozen=True, slots=True, eq=False)
class _GroupPlace:
    """Where the tensors of a dense section are."""

    entries: Sequence[DenseEntry]
    group: DenseGroup
    section: Section


class Reader(Mapping[str, Tensor]):
    """The tensors of a file, by name, in the order of the file; each is read when asked for.

    Nothing is kept between calls but the last small dense section, so memory stays near the size
    of what is asked for. Several threads may read at once.

    Args:
        source: where the bytes come from; closed by `close`.
        max_bytes: most bytes of the loaded state (float32 for seeded tensors, their own type for
            dense ones); None for no limit. Even then a file makes no more than 1,032 times its
            own size, because no Huffman code and no deflate stream can.

    Attributes:
        header: what the file declares.
        header_bytes: bytes of the file before its first section.

    Raises:
        FormatError: not a file of this format, or one that breaks its rules. Every fault that is
            found later, while reading a tensor, raises it, too.
        LimitError: the file declares more than ``max_bytes``.
    """

    def __init__(self, source: Source, *, max_bytes: int | None = None):
        self._source = source
        self.header, self.header_bytes = read_header(source)
        contents = self.header.contents
        check_limit(contents, max_bytes)
        places = list(sections(self.header, self.header_bytes))
        last = places[-1].offset + places[-1].length + CHECKSUM_BYTES if places else None
        check_extent(source, self.header_bytes if last is None else last)
        remaining = iter(places)
        self._side = next(remaining) if self.header.side else None
        self._codes = {
            entry.name: _CodesPlace(entry, coding.coder, next(remaining))
            for entry, coding in zip(contents.seeded, self.header.codings, strict=True)
        }
        self._dense: dict[str, tuple[_GroupPlace, int]] = {}
        for group, entries in grouped(contents.dense, self.header.groups):
            place = _GroupPlace(entries, group, next(remaining))
            self._dense.update({entry.name: (place, at) for at, entry in enumerate(entries)})
        self._decoders: dict[str, Decode] = {}
        self._last: tuple[_GroupPlace, list[DenseTensor]] | None = None

    def __getitem__(self, name: str) -> Tensor:
        if name in self._codes:
            return self._read_codes(self._codes[name])
        place, at = self._dense[name]
        return self._read_group(place)[at]

    def __iter__(self) -> Iterator[str]:
        return (entry.name for entry in self.header.contents.entries)

    def __len__(self) -> int:
        return len(self.header.contents.entries)

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    def _read_codes(self, place: _CodesPlace) -> SeededTensor:
        """Read one seeded tensor."""
        payload = read_section(self._source, place.section)
        decode = self._decoder(place.coder)
        try:
            codes = decode(place.entry, payload)
        except FormatError as error:
            raise FormatError(f"tensor {shown(place.entry.name)}", error.problem) from None
        return SeededTensor(place.entry.name, place.entry.spec, codes)

    def _decoder(self, name: str) -> Decode:
        """Return a coder's decoder for this file, prepared once."""
        if name not in self._decoders:
            coder = coder_named(name, "header")
            entries = [place.entry for place in self._codes.values() if place.coder == name]
            side: bytes | memoryview = b""
            if coder.shares_side and self._side is not None:
                side = read_section(self._source, self._side)
            self._decoders[name] = coder.decoder(self.header.contents.seed, entries, bytes(side))
        return self._decoders[name]

    def _read_group(self, place: _GroupPlace) -> list[DenseTensor]:
        """Read the tensors of one dense section; they are copies, free to change."""
        last = self._last
        if last is not None and last[0] is place:
            return [_copy(tensor) for tensor in last[1]]
        payload = read_section(self._source, place.section)
        tensors = decode_group(place.entries, place.group.encoding, payload, place.section.place)
        if sum(entry.loaded_bytes for entry in place.entries) <= DENSE_SECTION_BYTES:
            self._last = (place, tensors)
            return [_copy(tensor) for tensor in tensors]
        return tensors


def _copy(tensor: DenseTensor) -> DenseTensor:
    """Return the tensor with values of its own."""
    return DenseTensor(tensor.name, tensor.values.copy(), tensor.dtype, tensor.stored)
