"""The base of a delta file: the tensors of another file or network, read one at a time.

safetensors (one file or shards), numpy's .npz, .pabz and torch's .pt serve alike, as do tensors in
memory; only .pt and networks need torch. The same tensors in any of these forms are the same base.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Union

import numpy as np
from numpy.typing import NDArray

from pabzip._optional import require
from pabzip.errors import BaseFileError, shown
from pabzip.formats import DENSE_TYPES, MAGIC, Base
from pabzip.ticket import Ticket

if TYPE_CHECKING:
    from torch import nn

Found = tuple[str, NDArray[Any]]
"""The dtype's name, and the values as dense tensors carry them (bfloat16 as uint16)."""

BaseSource = Union[str, "os.PathLike[str]", Mapping[str, Any], "nn.Module", Ticket, Base]
"""What may be given as ``base=``: the path of a file, tensors by name (numpy's or torch's), a
network, an open `Ticket` or checkpoint, or whatever reads tensors itself
(`pabzip.formats.Base`)."""

_SAFETENSORS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_INDEX = ".safetensors.index.json"
_FORMS = f".safetensors, {_INDEX}, .npz, .pabz or .pt"
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself


class NamedBase(Base, Protocol):
    """A base that can list its tensors."""

    names: list[str]


def open_base(source: BaseSource) -> Base:
    """Open a base; nothing but names, types and places is read.

    Args:
        source: as `BaseSource` says. The form of a file is told by its first bytes, that of shards
            by the name of their index.

    Raises:
        BaseFileError: the file is of no form that is known, or damaged.
        OSError: it cannot be opened.
    """
    if isinstance(source, str | os.PathLike):
        return open_file(source)
    if isinstance(source, Mapping):
        return _Mapped(source)
    if hasattr(source, "state_dict"):
        return _Mapped(source.state_dict())
    if isinstance(source, Ticket):
        return _OfTicket(source, owned=False)
    if hasattr(source, "tensors") and hasattr(source, "read"):
        return _OfSource(source)
    if hasattr(source, "read"):
        return source
    raise BaseFileError(
        f"base: expected a path, tensors by name, a network or a Ticket, found {shown(source)}"
    )


def open_file(file: str | os.PathLike[str]) -> NamedBase:
    """Open a file of tensors by what it begins with; errors as of `open_base`."""
    path = Path(file)
    if path.name.endswith(_INDEX):
        return _Shards(path)
    if path.is_dir():
        inside = sorted(path.glob(f"*{_INDEX}")) or sorted(path.glob("*.safetensors"))
        if len(inside) == 1:
            return open_file(inside[0])
        raise BaseFileError(
            f"{path}: expected one safetensors file or index in the folder, found {len(inside)}; "
            "name the file"
        )
    with path.open("rb") as opened:
        start = opened.read(16)
    if start.startswith(MAGIC):
        return _OfTicket(Ticket.open(path), owned=True)
    if start[8:9] == b"{":
        return _Safetensors(path)
    if start.startswith(b"PK") and path.suffix == ".npz":
        return _Npz(path)
    if start.startswith(b"PK"):
        return _of_torch(path)
    raise BaseFileError(f"{path}: expected a base as {_FORMS}, found bytes {start[:8].hex(' ')}")


class _Mapped:
    """Tensors in memory, by name."""

    def __init__(self, tensors: Mapping[str, Any]):
        self._tensors = tensors
        self.names = list(tensors)

    def read(self, name: str) -> Found | None:
        """Return a tensor."""
        return None if name not in self._tensors else array_of(name, self._tensors[name])

    def close(self) -> None:
        """Do nothing."""


def array_of(name: str, value: Any) -> Found:
    """Return dtype and values of a numpy array or torch tensor in memory.

    Raises:
        BaseFileError: it is neither.
    """
    if isinstance(value, np.ndarray):
        if value.dtype.name == "bfloat16":  # of the package ml_dtypes
            return "bfloat16", value.view(np.uint16)
        return value.dtype.name, value
    if not hasattr(value, "detach"):
        raise BaseFileError(
            f"base: tensor {shown(name)}: expected an array or a tensor, found "
            f"{type(value).__name__}"
        )
    dtype = str(value.dtype).removeprefix("torch.")
    value = value.detach().cpu().contiguous()
    if dtype == "bfloat16":
        import torch

        return dtype, value.view(torch.int16).numpy().view(np.uint16)
    return dtype, value.numpy()


class _OfSource:
    """An open checkpoint: what each tensor is stands in ``tensors``, ``read`` gives its values."""

    def __init__(self, source: Any):
        self._source = source
        self.names = list(source.tensors)

    def read(self, name: str) -> Found | None:
        """Return a tensor."""
        if name not in self._source.tensors:
            return None
        return self._source.tensors[name].dtype, self._source.read(name)

    def close(self) -> None:
        """Close the checkpoint."""
        self._source.close()


class _OfTicket:
    """The tensors of a ticket."""

    def __init__(self, ticket: Ticket, *, owned: bool):
        self._ticket, self._owned = ticket, owned
        self.names = list(ticket.names)

    def read(self, name: str) -> Found | None:
        """Return a tensor, regenerated where it is seeded."""
        if name not in self._ticket.names:
            return None
        return self._ticket.dtype(name), self._ticket.exact(name)

    def close(self) -> None:
        """Close the ticket, unless its caller opened it."""
        if self._owned:
            self._ticket.close()


class _Safetensors:
    """One safetensors file, mapped into memory, so that only what is read takes any."""

    def __init__(self, path: Path):
        self._path = path
        size = path.stat().st_size
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, _MAX_HEADER_BYTES):
                raise self._damaged(f"a header within {size} bytes, found one of {length}")
            text = file.read(length)
        try:
            header = json.loads(text)
            rows = {name: row for name, row in header.items() if name != "__metadata__"}
            self._rows = {
                name: (row["dtype"], tuple(row["shape"]), *row["data_offsets"])
                for name, row in rows.items()
            }
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise self._damaged(f"a safetensors header, found a fault: {error}") from None
        self.names = list(self._rows)
        self._start = 8 + length
        self._bytes: NDArray[np.uint8] | None = np.memmap(path, dtype=np.uint8, mode="r")

    def _damaged(self, problem: str) -> BaseFileError:
        return BaseFileError(f"{self._path}: expected {problem}; the file is damaged")

    def read(self, name: str) -> Found | None:
        """Return a tensor, in the file's own memory."""
        if name not in self._rows:
            return None
        if self._bytes is None:
            raise ValueError("read of a closed base; open it again")
        kind, shape, start, stop = self._rows[name]
        if kind not in _SAFETENSORS:
            raise BaseFileError(
                f"{self._path}: tensor {shown(name)}: expected one of {', '.join(_SAFETENSORS)}, "
                f"found {shown(kind)}; leave it out of the base"
            )
        element = DENSE_TYPES[_SAFETENSORS[kind]].numpy
        plain = all(type(one) is int and one >= 0 for one in (*shape, start, stop))
        size = math.prod(shape) * element.itemsize if plain else -1
        if not plain or stop > self._bytes.size - self._start or stop - start != size:
            raise self._damaged(f"tensor {shown(name)} within its bytes, found it elsewhere")
        data = self._bytes[self._start + start : self._start + stop]
        if data.ctypes.data % element.itemsize:
            data = data.copy()
        return _SAFETENSORS[kind], np.asarray(data).view(element).reshape(shape)

    def close(self) -> None:
        """Let go of the file."""
        self._bytes = None


class _Shards:
    """Safetensors files beside an index that says which of them holds a tensor."""

    def __init__(self, path: Path):
        try:
            weights = json.loads(path.read_text("utf-8"))["weight_map"]
            self._files = {str(name): str(file) for name, file in weights.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise BaseFileError(
                f"{path}: expected an index of shards with a weight_map, found none"
            ) from None
        for file in self._files.values():
            if Path(file).name != file:
                raise BaseFileError(
                    f"{path}: expected shards beside the index, found {shown(file)}"
                )
        self.names = list(self._files)
        self._folder = path.parent
        self._open: dict[str, _Safetensors] = {}

    def read(self, name: str) -> Found | None:
        """Return a tensor, in the memory of its shard."""
        if name not in self._files:
            return None
        file = self._files[name]
        if file not in self._open:
            self._open[file] = _Safetensors(self._folder / file)
        return self._open[file].read(name)

    def close(self) -> None:
        """Let go of the files."""
        for shard in self._open.values():
            shard.close()


class _Npz:
    """Numpy's archive."""

    def __init__(self, path: Path):
        self._path = path
        try:
            self._archive = np.load(path, allow_pickle=False)
        except (ValueError, zipfile.BadZipFile) as error:
            raise BaseFileError(f"{path}: expected an .npz file, found a fault: {error}") from None
        self.names = list(self._archive.files)

    def read(self, name: str) -> Found | None:
        """Return a tensor."""
        if name not in self._archive:
            return None
        try:
            values = self._archive[name]
        except (ValueError, zipfile.BadZipFile) as error:
            raise BaseFileError(
                f"{self._path}: tensor {shown(name)}: expected an array, found a fault: {error}"
            ) from None
        return values.dtype.name, values

    def close(self) -> None:
        """Close the archive."""
        self._archive.close()


def _of_torch(path: Path) -> NamedBase:
    """Return the tensors of a checkpoint or state dict that ``torch.save`` made."""
    require("torch", extra="torch", purpose="a base in a .pt file")
    from pabzip.checkpoint import Checkpoint, load_state

    found = load_state(path)
    return _Mapped(found.state_dict if isinstance(found, Checkpoint) else found)
