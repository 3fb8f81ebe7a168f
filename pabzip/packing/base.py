"""The base of a delta file: the tensors of another file or network, read one at a time.

safetensors (one file or shards), numpy's .npz, .pabz and torch's .pt serve alike, as do tensors in
memory; only .pt and networks need torch. The same tensors in any of these forms are the same base.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from numpy.typing import NDArray

from pabzip.errors import BaseFileError, CheckpointError, PackError, shown
from pabzip.formats import DENSE_TYPES, MAGIC, Base
from pabzip.packing.checkpoint_files import open_checkpoint
from pabzip.packing.sources import MemorySource, Source
from pabzip.ticket import Ticket
from pabzip.wrappers import full_state

if TYPE_CHECKING:
    from torch import nn

Found = tuple[str, NDArray[Any]]
"""The dtype's name, and the values as dense tensors carry them (bfloat16 as uint16)."""

BaseSource = Union[str, "os.PathLike[str]", Mapping[str, Any], "nn.Module", Ticket, Base]
"""What may be given as ``base=``: the path of a file, tensors by name (numpy's or torch's), a
network, an open `Ticket`, or whatever reads tensors itself (`pabzip.formats.Base`)."""


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
        return _in_memory(source)
    if hasattr(source, "state_dict"):
        return _in_memory(full_state(source))  # type: ignore[arg-type]
    if isinstance(source, Ticket):
        return _OfTicket(source, owned=False)
    if hasattr(source, "read"):
        return source
    raise BaseFileError(
        f"base: expected a path, tensors by name, a network or a Ticket, found {shown(source)}"
    )


def open_file(file: str | os.PathLike[str]) -> Base:
    """Open a file of tensors by what it begins with; errors as of `open_base`."""
    path = Path(file)
    if path.is_file():
        with path.open("rb") as opened:
            start = opened.read(len(MAGIC))
        if start == MAGIC:
            return _OfTicket(Ticket.open(path), owned=True)
    try:
        found = open_checkpoint(path)
    except CheckpointError as error:
        raise BaseFileError(f"base: {error}") from error
    return _OfSource(found) if hasattr(found, "read") else _in_memory(found.state_dict)


def _in_memory(tensors: Mapping[str, Any]) -> Base:
    """Return tensors by name as a base."""
    try:
        return _OfSource(MemorySource(tensors))
    except PackError as error:
        raise BaseFileError(f"base: {error}") from error


class _OfTicket:
    """The tensors of a ticket."""

    def __init__(self, ticket: Ticket, *, owned: bool):
        self._ticket, self._owned = ticket, owned

    def read(self, name: str) -> Found | None:
        """Return a tensor, regenerated where it is seeded."""
        if name not in self._ticket.names:
            return None
        return self._ticket.dtype(name), self._ticket.exact(name)

    def close(self) -> None:
        """Close the ticket, unless its caller opened it."""
        if self._owned:
            self._ticket.close()


class _OfSource:
    """The tensors of a checkpoint's file."""

    def __init__(self, source: Source):
        self._source = source

    def read(self, name: str) -> Found | None:
        """Return a tensor."""
        described = self._source.tensors.get(name)
        if described is None:
            return None
        if described.dtype not in DENSE_TYPES:
            raise BaseFileError(
                f"{self._source.place}: tensor {shown(name)}: expected one of "
                f"{', '.join(DENSE_TYPES)}, found {described.dtype}; leave it out of the base"
            )
        try:
            return described.dtype, self._source.read(name)
        except CheckpointError as error:
            raise BaseFileError(f"base: {error}") from error

    def close(self) -> None:
        """Let go of the file."""
        self._source.close()
