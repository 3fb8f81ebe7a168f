"""Files of the safetensors format, read and written tensor by tensor, without torch.

The library's own writer wants all tensors in memory at once, and its reader for numpy has no
bfloat16, so that both are written out here: 8 bytes with the length of a JSON header (little
endian), the header, padded with spaces to a multiple of 8, and the elements of all tensors.

Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError, shown
from pabzip.formats import Scalar
from pabzip.formats.header import parse_json
from pabzip.formats.limits import DENSE_TYPES, MAX_RANK
from pabzip.formats.writer import write_all
from pabzip.packing.sources import ELEMENT_TYPES, Described, FileBytes

MAX_HEADER_BYTES = 32 << 20
METADATA_PREFIX = "safetensors."
"""Begins the names under which a .pabz file keeps a checkpoint's own metadata."""

_NAMES = {**ELEMENT_TYPES, "U8": "uint8", "BOOL": "bool"}
_OTHERS = {  # what is refused later, by name; bits an element
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "F4": ("float4_e2m1fn_x2", 4),
    "F6_E2M3": ("float6_e2m3", 6),
    "F6_E3M2": ("float6_e3m2", 6),
    "U16": ("uint16", 16),
    "U32": ("uint32", 32),
    "U64": ("uint64", 64),
    "C64": ("complex64", 64),
}
_ORDER = [
    *("int64", "float64", "float32", "int32", "bfloat16", "float16", "int16", "int8"),
    *("uint8", "bool"),
]
"""Element types in the order in which the library writes tensors of them."""

_OF_TORCH = ("format", "pt")
_CODES = {name: code for code, name in _NAMES.items()}


class SafetensorsSource:
    """A safetensors file as a `pabzip.packing.sources.Source`; only its header is read at once.

    Its metadata are kept under names that begin with `METADATA_PREFIX`, but for a ``format`` of
    ``"pt"``, which says that the tensors are torch's, as all files do that are written here.

    Raises:
        CheckpointError: the file is damaged, cut, or breaks a rule of the format.
    """

    def __init__(self, file: FileBytes):
        self._file = file
        self.place = file.place
        self.tensors: dict[str, Described] = {}
        self.metadata: dict[str, Scalar] = {}
        self._offsets: dict[str, int] = {}
        length = int.from_bytes(file.read(0, 8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, file.size - 8):
            file.refuse(
                f"expected a safetensors header of 2 to {MAX_HEADER_BYTES} bytes within the file "
                f"of {file.size}, found one of {length}"
            )
        try:
            header = parse_json(file.read(8, length))
        except FormatError as error:
            file.refuse(f"safetensors header: {error.problem}")
        if not isinstance(header, dict):
            file.refuse(f"safetensors header: expected a JSON object, found {shown(header)}")
        self._take_metadata(header.pop("__metadata__", {}))
        self._take_tensors(header, 8 + length)

    def _take_metadata(self, found: Any) -> None:
        """Keep what the header says of the whole file."""
        if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
            self._file.refuse(
                "safetensors header: expected texts as metadata, found something else"
            )
        self.metadata.update(
            (METADATA_PREFIX + key, value)
            for key, value in found.items()
            if (key, value) != _OF_TORCH
        )

    def _take_tensors(self, header: Mapping[str, Any], start: int) -> None:
        """Check the rows of the header: known types, and elements without gap or overlap."""
        spans = []
        for name, row in header.items():
            if not isinstance(row, dict) or set(row) != {"dtype", "shape", "data_offsets"}:
                self._refuse(name, "dtype, shape and data_offsets", row)
            code, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
            if not isinstance(code, str) or not (code in _NAMES or code in _OTHERS):
                self._refuse(name, "a known dtype", code)
            if not _integers(shape) or len(shape) > MAX_RANK:
                self._refuse(name, f"a shape of at most {MAX_RANK} dimensions", shape)
            if not _integers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
                self._refuse(name, "two data_offsets in order", offsets)
            if code in _NAMES:
                dtype, bits = _NAMES[code], 8 * DENSE_TYPES[_NAMES[code]].itemsize
            else:
                dtype, bits = _OTHERS[code]
            size = math.prod(shape) * bits
            if size != 8 * (offsets[1] - offsets[0]):
                self._refuse(name, f"{size // 8} bytes of elements", offsets[1] - offsets[0])
            self.tensors[name] = Described(dtype, tuple(shape))
            self._offsets[name] = start + offsets[0]
            spans.append((*offsets, name))
        end = 0
        for first, last, name in sorted(spans):
            if first != end:
                self._refuse(name, f"its elements to begin at byte {end}", first)
            end = last
        if start + end != self._file.size:
            self._file.refuse(f"expected {start + end} bytes, found {self._file.size}")
        # The order of the elements, which the header's own need not be.
        names = [name for *_, name in sorted(spans)]
        self.tensors = {name: self.tensors[name] for name in names}

    def _refuse(self, name: str, expected: str, found: object) -> None:
        """Refuse one row of the header."""
        self._file.refuse(f"tensor {shown(name)}: expected {expected}, found {shown(found)}")

    def read(self, name: str) -> NDArray[Any]:
        """Return a tensor's values, in memory of their own."""
        dtype, shape = self.tensors[name]
        values = np.empty(shape, DENSE_TYPES[dtype].numpy)
        if values.size:
            self._file.fill(self._offsets[name], values.reshape(-1).view(np.uint8).data)
        return values

    def head(self, name: str, count: int) -> bytes:
        """Return the first bytes of a tensor's values."""
        return self._file.read(self._offsets[name], min(count, self.tensors[name].nbytes))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _integers(values: object) -> bool:
    """Return whether these are integers of at least 0 that 64 bits hold."""
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 2**63 for value in values
    )


def header_bytes(
    tensors: Mapping[str, Described], metadata: Mapping[str, Scalar]
) -> tuple[bytes, dict[str, int]]:
    """Return the start of a file, and where the elements of each tensor begin.

    The order is the library's: by element type, then by name; so are the bytes.

    Args:
        tensors: what the file is going to hold.
        metadata: of a ticket: those of a safetensors file (`METADATA_PREFIX`) are written again.
    """
    order = sorted(tensors, key=lambda name: (_ORDER.index(tensors[name].dtype), name.encode()))
    own = {
        key.removeprefix(METADATA_PREFIX): str(value)
        for key, value in sorted(metadata.items())
        if key.startswith(METADATA_PREFIX)
    }
    # The entry that loaders of torch weights expect comes first; a file of others has its own.
    header: dict[str, Any] = {"__metadata__": dict([_OF_TORCH]) | own}
    offsets, end = {}, 0
    for name in order:
        dtype, shape = tensors[name]
        start, end = end, end + tensors[name].nbytes
        offsets[name] = start
        header[name] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    begin = struct.pack("<Q", len(text)) + text
    return begin, {name: len(begin) + start for name, start in offsets.items()}


def write_safetensors(
    tensors: Mapping[str, Described],
    values: Iterable[NDArray[Any]],
    file: BinaryIO,
    *,
    metadata: Mapping[str, Scalar] | None = None,
) -> None:
    """Write a safetensors file, each tensor at its place as it comes.

    Args:
        tensors: what they are, by name.
        values: of each, in the order of ``tensors``, as `Source.read` gives them; taken one at a
            time.
        file: a seekable stream; written from where it stands.
        metadata: as for `header_bytes`.
    """
    begin, offsets = header_bytes(tensors, metadata or {})
    first = file.tell()
    write_all(file, begin)
    end = len(begin)
    taken = iter(values)
    for name, described in tensors.items():
        file.seek(first + offsets[name])
        data = next(taken)
        write_all(file, np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
        del data
        end = max(end, offsets[name] + described.nbytes)
    next(taken, None)  # lets the values end
    file.seek(first + end)


def split(tensors: Mapping[str, Described], most: int) -> list[list[str]]:
    """Return the names of tensors shard by shard, each of at most so many bytes of elements.

    In order, as Hugging Face splits a model; a tensor that is larger has a shard of its own.
    """
    shards: list[list[str]] = []
    filling: list[str] = []
    filled = 0
    for name, described in tensors.items():
        size = described.nbytes
        if size > most:
            shards.append([name])
            continue
        if filled + size > most:
            shards.append(filling)
            filling, filled = [], 0
        filling.append(name)
        filled += size
    return [*shards, filling] if filling else shards


def shard_names(stem: str, count: int) -> Sequence[str]:
    """Return the names of a model's shards: ``model-00001-of-00003.safetensors``, ..."""
    return [f"{stem}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]


def index_text(shards: Mapping[str, Sequence[str]], tensors: Mapping[str, Described]) -> bytes:
    """Return what ``<model>.safetensors.index.json`` says of shards: names of tensors by file."""
    weight_map = {name: file for file, names in shards.items() for name in names}
    total = sum(described.nbytes for described in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return (json.dumps(index, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
