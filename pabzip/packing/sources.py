"""Tensors of a checkpoint, whatever its form: what each is, and its values when they are asked for.

Every form of checkpoint is a `Source`: names, types and shapes are known at once, so that what
cannot be packed is refused before anything is written, and values are read one tensor at a time.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn, Protocol, Union

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import CheckpointError, FormatError, PackError
from pabzip.formats import Contents, DenseEntry, Scalar
from pabzip.formats.contents import check_contents
from pabzip.formats.limits import DENSE_TYPES

if TYPE_CHECKING:
    import torch

Value = Union["torch.Tensor", NDArray[Any]]
"""A tensor in memory: torch's, on any device, or a numpy array."""

ELEMENT_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
}
"""Torch's names of the element types, by those that safetensors and .gguf files both have."""

_EXPANDED_BYTES = 256 << 20


class Described(NamedTuple):
    """What a checkpoint says of one tensor.

    Attributes:
        dtype: torch's name of the element type, such as ``"bfloat16"``.
        shape: its dimensions.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the elements; 0 of a type that no file of ours holds."""
        known = DENSE_TYPES.get(self.dtype)
        return math.prod(self.shape) * known.itemsize if known else 0


class Source(Protocol):
    """The tensors of a checkpoint; may be read from several threads.

    Attributes:
        place: name of the file, for messages; empty for tensors in memory.
        tensors: what each tensor is, by name, in the order of the checkpoint.
        metadata: flat JSON values that a packed file keeps.
    """

    place: str

    @property
    def tensors(self) -> Mapping[str, Described]:
        """What each tensor is."""

    @property
    def metadata(self) -> Mapping[str, Scalar]:
        """What else the checkpoint says."""

    def read(self, name: str) -> NDArray[Any]:
        """Return the values: C-contiguous, of the numpy type that `DENSE_TYPES` gives.

        bfloat16 comes as uint16 bit patterns. The array may be the source's own memory.

        Raises:
            CheckpointError: the file is damaged there.
        """

    def head(self, name: str, count: int) -> bytes:
        """Return the first ``count`` bytes of the values, or all where they are fewer."""

    def close(self) -> None:
        """Let go of the file."""


class MemorySource:
    """Tensors in memory as a `Source`: torch's or numpy's, by name.

    Raises:
        PackError: something is no tensor, or one without values of its own (sparse, meta, ...).
    """

    def __init__(self, values: Mapping[str, Value], place: str = ""):
        self.place = place
        self.metadata: Mapping[str, Scalar] = {}
        self._values = values
        self.tensors = {name: _describe(name, value) for name, value in values.items()}

    def read(self, name: str) -> NDArray[Any]:
        """Return a tensor's values; they share its memory where they can."""
        return _to_numpy(self._values[name])

    def head(self, name: str, count: int) -> bytes:
        """Return the first bytes of a tensor's values."""
        size = DENSE_TYPES[self.tensors[name].dtype].itemsize
        return _to_numpy(self._values[name].reshape(-1)[: -(-count // size)]).tobytes()[:count]

    def close(self) -> None:
        """Do nothing."""


def _describe(name: str, value: object) -> Described:
    """Return what a tensor in memory is; refuse what has no values that could be read."""
    if isinstance(value, np.ndarray):
        return Described(value.dtype.name, value.shape)
    if "torch" not in sys.modules:
        raise PackError(
            f"{name}: expected an array or a tensor, found {type(value).__name__}; keep it outside "
            "the network's state_dict"
        )
    from pabzip.storable import check_tensor

    check_tensor(name, value, seeded=False)
    torch_value: Any = value
    held = max(_EXPANDED_BYTES, torch_value.untyped_storage().nbytes())
    if torch_value.numel() * torch_value.element_size() > held:
        raise PackError(
            f"{name}: expected a tensor with values of its own, found one of "
            f"{torch_value.numel()} elements in a storage that holds fewer; call contiguous()"
        )
    return Described(str(torch_value.dtype).removeprefix("torch."), tuple(torch_value.shape))


def _to_numpy(value: Value) -> NDArray[Any]:
    """Return a tensor as `Source.read` does."""
    if isinstance(value, np.ndarray):
        if value.dtype.name == "bfloat16":  # ml_dtypes'
            value = value.view(np.uint16)
        return np.asarray(value, value.dtype.newbyteorder("<"), order="C")
    from pabzip.storable import numpy_of

    return numpy_of(value)


class FileBytes:
    """The bytes of a checkpoint's file, read at any place, from several threads.

    Args:
        file: a path, or a seekable binary stream, which stays the caller's to close.

    Attributes:
        place: its name, for messages.
        size: of the file, in bytes.
    """

    def __init__(self, file: str | os.PathLike[str] | BinaryIO):
        self._own = isinstance(file, str | os.PathLike)
        self.place = os.fspath(file) if isinstance(file, str | os.PathLike) else "<stream>"
        self._file = open(file, "rb") if isinstance(file, str | os.PathLike) else file  # noqa: SIM115
        self._lock = threading.Lock()
        self.size = self._file.seek(0, os.SEEK_END)

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the file, fewer where it ends."""
        with self._lock:
            self._file.seek(offset)
            return self._file.read(length)

    def fill(self, offset: int, out: memoryview) -> None:
        """Read into memory; refuse a file that has become shorter."""
        with self._lock:
            self._file.seek(offset)
            while out:
                count = self._file.readinto(out[: 1 << 30])  # type: ignore[attr-defined]
                if not count:
                    self.refuse(f"expected {len(out)} more bytes, found the end of the file")
                out = out[count:]

    def stream(self) -> BinaryIO:
        """Return the file as a stream, which nobody else reads meanwhile."""
        self._file.seek(0)
        return self._file

    def refuse(self, problem: str) -> NoReturn:
        """Raise a `CheckpointError` that names the file."""
        raise CheckpointError(f"{self.place}: {problem}")

    def close(self) -> None:
        """Close the file, unless it is the caller's."""
        if self._own:
            self._file.close()


def check_described(source: Source) -> None:
    """Refuse, before anything is read or written, what a file of ours cannot hold.

    Raises:
        PackError: no tensor at all, an element type or a shape that the format does not know, or a
            name or metadata that break its rules.
    """
    where = f"{source.place}: " if source.place else ""
    if not source.tensors:
        raise PackError(f"{where}expected tensors, found none")
    for name, (dtype, _) in source.tensors.items():
        if dtype not in DENSE_TYPES:
            raise PackError(
                f"{where}{name}: expected one of {', '.join(DENSE_TYPES)}, found {dtype}, which a "
                ".pabz file does not hold; convert it first, or leave the tensor out"
            )
    entries = tuple(
        DenseEntry(name, shape, dtype, dtype) for name, (dtype, shape) in source.tensors.items()
    )
    try:
        check_contents(Contents(0, "custom", {}, source.metadata, entries))
    except FormatError as error:
        raise PackError(f"{where}{error}") from None
