"""Archives of numpy arrays (.npz), read and written array by array; no pickle is ever loaded."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pabzip.formats import Scalar, bfloat16_to_float32
from pabzip.formats.limits import MAX_TENSORS
from pabzip.packing.sources import Described, FileBytes

_SUFFIX = ".npy"
_PIECE = 8 << 20
_DEFLATE_EXPANSION = 1032  # 258 bytes from 2 bits: deflate cannot make more of its input
_BAD = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, RuntimeError)
"""What zipfile and numpy raise for archives that are damaged, encrypted or compressed otherwise."""


class NpzSource:
    """An .npz archive as a `pabzip.packing.sources.Source`; only arrays' headers are read at once.

    Raises:
        CheckpointError: the archive is damaged, holds something other than arrays, or arrays of
            Python objects, which only a pickle could load.
    """

    def __init__(self, file: FileBytes):
        self._file = file
        self.place = file.place
        self.metadata: Mapping[str, Scalar] = {}
        self.tensors: dict[str, Described] = {}
        self._members: dict[str, tuple[zipfile.ZipInfo, np.dtype[Any], bool]] = {}
        try:
            self._archive = zipfile.ZipFile(file.stream())
            members = self._archive.infolist()
            if len(members) > MAX_TENSORS:
                file.refuse(f"expected at most {MAX_TENSORS} arrays, found {len(members)}")
            for member in members:
                self._take(member)
        except _BAD as error:
            file.refuse(f"expected an .npz archive of arrays, found a damaged one ({error})")

    def _take(self, member: zipfile.ZipInfo) -> None:
        """Read the header of one array."""
        name = member.filename.removesuffix(_SUFFIX)
        if not member.filename.endswith(_SUFFIX) or name in self.tensors:
            self._file.refuse(
                f"expected arrays of different names in the .npz archive, found {member.filename!r}"
            )
        with self._archive.open(member) as stream:
            shape, by_columns, dtype = _read_header(stream)
            start = stream.tell()
        if dtype.hasobject:
            self._file.refuse(
                f"{name}: expected an array of numbers, found one of Python objects, which only a "
                "pickle could load; it was not loaded"
            )
        size = start + math.prod(shape) * dtype.itemsize
        if size != member.file_size or size > _DEFLATE_EXPANSION * member.compress_size:
            self._file.refuse(
                f"{name}: expected {size} bytes in the archive, found {member.file_size} from "
                f"{member.compress_size}"
            )
        self.tensors[name] = Described(dtype.name, shape)
        self._members[name] = (member, dtype, by_columns)

    def read(self, name: str) -> NDArray[Any]:
        """Return an array's values, in memory of their own."""
        member, dtype, by_columns = self._members[name]
        shape = self.tensors[name].shape
        values = np.empty(math.prod(shape), dtype)
        out = values.view(np.uint8).data if values.size else memoryview(b"")
        try:
            with self._archive.open(member) as stream:
                _read_header(stream)
                while out:
                    piece = stream.read(min(len(out), _PIECE))
                    if not piece:
                        raise EOFError("the data end too soon")
                    out[: len(piece)] = piece
                    out = out[len(piece) :]
                stream.read(1)  # which has the checksum compared
        except _BAD as error:
            self._file.refuse(f"{name}: expected an array, found damaged data ({error})")
        values = values.reshape(shape, order="F" if by_columns else "C")
        return np.asarray(values, dtype.newbyteorder("<"), order="C")

    def head(self, name: str, count: int) -> bytes:
        """Return the first bytes of an array's values."""
        member, dtype, by_columns = self._members[name]
        if by_columns or dtype != dtype.newbyteorder("<"):
            return self.read(name).tobytes()[:count]
        try:
            with self._archive.open(member) as stream:
                _read_header(stream)
                return stream.read(count)
        except _BAD as error:
            self._file.refuse(f"{name}: expected an array, found damaged data ({error})")

    def close(self) -> None:
        """Close the archive."""
        self._archive.close()
        self._file.close()


def _read_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether the order is by columns, and element type of a stream of one array."""
    version = npy.read_magic(stream)
    if version == (1, 0):
        return npy.read_array_header_1_0(stream)
    if version == (2, 0):
        return npy.read_array_header_2_0(stream)
    raise ValueError(f"version {version} of the .npy format")


def write_npz(
    tensors: Mapping[str, Described],
    values: Iterable[NDArray[Any]],
    file: BinaryIO,
    *,
    metadata: Mapping[str, Scalar] | None = None,
) -> None:
    """Write an uncompressed .npz archive; bfloat16, which numpy lacks, becomes float32, exactly.

    Arguments are as for `pabzip.packing.safetensors_files.write_safetensors`; an archive has no
    place for metadata.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        taken = iter(values)
        for name, (dtype, _) in tensors.items():
            # A fixed date, so that the same ticket gives the same bytes.
            entry = zipfile.ZipInfo(f"{name}{_SUFFIX}", date_time=(1980, 1, 1, 0, 0, 0))
            data = next(taken)
            with archive.open(entry, "w", force_zip64=True) as member:
                known = bfloat16_to_float32(data) if dtype == "bfloat16" else data
                npy.write_array(member, known, allow_pickle=False)
            del data, known
