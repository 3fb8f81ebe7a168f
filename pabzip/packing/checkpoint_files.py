"""Checkpoints as files: which form one has is told by its first bytes, never by its name.

Forms: safetensors, .npz, what ``torch.save`` made of tensors by name, the index of a checkpoint in
shards of these (``model.safetensors.index.json``, ``pytorch_model.bin.index.json``), a folder that
holds one checkpoint, and the checkpoints of `pabzip.save_checkpoint`. Only torch's own need torch.
"""

from __future__ import annotations

import errno
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard, Union

from numpy.typing import NDArray

from pabzip._optional import require
from pabzip.errors import CheckpointError, FormatError, PackError, shown
from pabzip.formats import MAGIC, Scalar
from pabzip.formats.header import parse_json
from pabzip.packing.npz_files import NpzSource
from pabzip.packing.safetensors_files import SafetensorsSource
from pabzip.packing.sources import Described, FileBytes, MemorySource, Source

if TYPE_CHECKING:
    from pabzip.checkpoint import Checkpoint

File = str | os.PathLike[str] | BinaryIO
Opened = Union[Source, "Checkpoint"]

FORMS = (
    "safetensors, .npz, .gguf, a torch state dict, an index of shards, or a checkpoint of pabzip"
)
INDEX_SUFFIX = ".index.json"
_MAX_INDEX_BYTES = 64 << 20
_MODEL_FILES = (".safetensors", ".npz", ".pt", ".pth", ".bin")


def open_checkpoint(source: File) -> Opened:
    """Open a checkpoint of any form; the values of its tensors stay in the file.

    Args:
        source: a path of a file or folder, or a seekable binary stream.

    Returns:
        A `Checkpoint` where the file says how its weights were drawn, else a `Source`.

    Raises:
        CheckpointError: the file has another form, is damaged, or asks to run code.
        MissingDependencyError: it is torch's, and torch is not installed.
        OSError: it cannot be opened.
    """
    if isinstance(source, str | os.PathLike) and os.path.isdir(source):
        source = _in_folder(Path(source))
    file = FileBytes(source)
    try:
        head = file.read(0, 16)
        if not head:
            file.refuse("expected a checkpoint, found an empty file")
        if head.startswith(MAGIC):
            file.refuse(
                "expected a checkpoint, found a .pabz file; read it with pabzip.load or pabzip.open"
            )
        opener = next((opener for fits, opener in _FORMS if fits(file, head)), None)
        if opener is None:
            file.refuse(
                f"expected {FORMS}, found something else (it begins with {head[:8].hex(' ')})"
            )
        return opener(file, source)
    except BaseException:
        file.close()
        raise


def is_source(opened: object) -> TypeGuard[Source]:
    """Return whether this is a checkpoint without a seed, which is read tensor by tensor."""
    return hasattr(opened, "tensors") and hasattr(opened, "head")


def _in_folder(folder: Path) -> Path:
    """Return the one checkpoint in a folder: an index, or a file where there is no index."""
    names = sorted(os.listdir(folder))
    indexes = [name for name in names if name.endswith(INDEX_SUFFIX)]
    found = [name for name in names if name.endswith(_MODEL_FILES)]
    stems = [name.removesuffix(INDEX_SUFFIX) for name in indexes]
    whole = [name for name in found if name in stems]  # beside an index of the same name
    if len(indexes) == 1 and not whole:
        return folder / indexes[0]
    if len(found) == 1 and not indexes:
        return folder / found[0]
    several = [*indexes, *(found if not indexes else whole)]
    if not several:
        raise FileNotFoundError(
            errno.ENOENT, f"holds no index of shards and no {', '.join(_MODEL_FILES)}", folder
        )
    raise PackError(
        f"{folder}: expected one checkpoint in the folder, an index of shards or a file, found "
        f"{', '.join(several[:6])}; name the file"
    )


def _is_zip(holds: Callable[[list[str]], bool]) -> Callable[[FileBytes, bytes], bool]:
    """Return whether a file is a zip archive whose members' names are such."""

    def fits(file: FileBytes, head: bytes) -> bool:
        if not head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            return False
        try:
            with zipfile.ZipFile(file.stream()) as archive:
                return holds(archive.namelist())
        except (zipfile.BadZipFile, ValueError, OSError, RuntimeError) as error:
            file.refuse(f"expected a checkpoint, found a damaged zip archive ({error})")

    return fits


def _open_torch(file: FileBytes, source: File) -> Opened:
    """Open what ``torch.save`` wrote; a path is mapped into memory, a stream read at once."""
    require("torch", extra="torch", purpose=f"packing a torch checkpoint ({file.place})")
    from pabzip.checkpoint import Checkpoint, load_state

    if isinstance(source, str | os.PathLike):
        file.close()
    loaded = load_state(source)
    return loaded if isinstance(loaded, Checkpoint) else MemorySource(loaded, file.place)


def _open_index(file: FileBytes, source: File) -> Source:
    """Open the shards that an index names, which stand beside it."""
    if not isinstance(source, str | os.PathLike):
        file.refuse("expected the path of an index, found a stream; its shards stand beside it")
    if file.size > _MAX_INDEX_BYTES:
        file.refuse(f"expected an index of at most {_MAX_INDEX_BYTES} bytes, found {file.size}")
    try:
        found = parse_json(file.read(0, file.size))
    except FormatError as error:
        file.refuse(f"index of shards: {error.problem}")
    file.close()
    listed = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(listed, dict) or not listed:
        file.refuse(
            f"expected the index of a checkpoint in shards, with a weight_map, found {shown(found)}"
        )
    for name, shard in listed.items():
        if not _stays_within(shard):
            file.refuse(
                f"{shown(name)}: expected the name of a shard in the folder of the index, found "
                f"{shown(shard)}"
            )
    return ShardedSource(file.place, listed)


def _stays_within(path: Any) -> bool:
    """Return whether an index may name this file: none outside of its own folder."""
    if not isinstance(path, str) or re.search(r"[\\:\x00-\x1f]", path):
        return False
    return all(part not in ("", ".", "..") for part in path.split("/"))


def _open_gguf(file: FileBytes, source: File) -> Source:
    """Open llama.cpp's form, which is mapped into memory."""
    from pabzip.packing.gguf import GgufSource

    if not isinstance(source, str | os.PathLike):
        file.refuse("expected the path of a .gguf file, found a stream; save it first")
    file.close()
    return GgufSource(source)


_FORMS: list[tuple[Callable[[FileBytes, bytes], bool], Callable[[FileBytes, File], Opened]]] = [
    (lambda _file, head: head.startswith(b"GGUF"), _open_gguf),
    (
        lambda _file, head: head[5:9] == b"\0\0\0{",  # after a length below 2**40
        lambda file, _source: SafetensorsSource(file),
    ),
    (
        _is_zip(lambda names: bool(names) and all(name.endswith(".npy") for name in names)),
        lambda file, _source: NpzSource(file),
    ),
    (_is_zip(lambda _names: True), _open_torch),
    (lambda _file, head: head[:1] == b"\x80" and head[1:2] < b"\x06", _open_torch),  # before 1.6
    (lambda _file, head: head.lstrip()[:1] == b"{", _open_index),
]
"""How to tell a form by a file and its first 16 bytes, and what opens it; the first that fits."""


class ShardedSource:
    """A checkpoint in several files as one `pabzip.packing.sources.Source`.

    Args:
        index: path of the index, in whose folder the shards are.
        listed: name of the shard of each tensor.

    Raises:
        CheckpointError: a shard is missing or damaged, lacks a tensor that the index promises, or
            holds one that it does not.
    """

    def __init__(self, index: str, listed: Mapping[str, str]):
        self.place = index
        self.tensors: dict[str, Described] = {}
        self.metadata: dict[str, Scalar] = {}
        self._shard_of: dict[str, Source] = {}
        self._opened: list[Source] = []
        try:
            for shard in sorted(set(listed.values())):
                self._take(shard, listed)
        except BaseException:
            self.close()
            raise

    def _take(self, shard: str, listed: Mapping[str, str]) -> None:
        """Open a shard, and compare what it holds with the index."""
        try:
            opened: Any = open_checkpoint(Path(self.place).parent / shard)
        except (FileNotFoundError, IsADirectoryError):
            raise CheckpointError(
                f"{self.place}: expected the shard {shown(shard)} beside it, found none; fetch the "
                "whole checkpoint"
            ) from None
        if isinstance(opened, ShardedSource) or not is_source(opened):
            raise CheckpointError(
                f"{self.place}: expected a shard of plain tensors, found {shown(shard)}, which is "
                "another checkpoint"
            )
        self._opened.append(opened)
        promised = [name for name, other in listed.items() if other == shard]
        missing = [name for name in promised if name not in opened.tensors]
        extra = [name for name in opened.tensors if listed.get(name) != shard]
        if missing:
            raise CheckpointError(
                f"{self.place}: expected {shown(missing[0])} in the shard {shown(shard)}, found "
                f"it without ({len(missing)} tensors are missing there)"
            )
        if extra:
            other = listed.get(extra[0])
            where = f"which the index puts in {shown(other)}" if other else "which is not in it"
            raise CheckpointError(
                f"{self.place}: expected the tensors of the shard {shown(shard)} as the index "
                f"lists them, found {shown(extra[0])}, {where}"
            )
        for name, described in opened.tensors.items():
            self.tensors[name] = described
            self._shard_of[name] = opened
        self.metadata.update(opened.metadata)

    def read(self, name: str) -> NDArray[Any]:
        """Return a tensor's values."""
        return self._shard_of[name].read(name)

    def head(self, name: str, count: int) -> bytes:
        """Return the first bytes of a tensor's values."""
        return self._shard_of[name].head(name, count)

    def close(self) -> None:
        """Close all shards."""
        for shard in self._opened:
            shard.close()
