"""The base of a delta file: the tensors of another file or network, read one at a time.

Every form of checkpoint serves alike, as do .pabz files and tensors in memory: the same tensors in
any of these are the same base.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Union, cast

from numpy.typing import NDArray

from pabzip.errors import BaseFileError, PackError, shown
from pabzip.formats import DENSE_TYPES, MAGIC, Base
from pabzip.packing.checkpoint_files import open_checkpoint
from pabzip.packing.sources import MemorySource, Source
from pabzip.ticket import Ticket
from pabzip.wrappers import full_state

if TYPE_CHECKING:
    from torch import nn

Found = tuple[str, NDArray[Any]]
"""The dtype's name, and the values as dense tensors carry them (bfloat16 as uint16)."""

BaseSource = Union[str, "os.PathLike[str]", Mapping[str, Any], "nn.Module", Ticket, Source, Base]
"""What may be given as ``base=``: the path of a file, tensors by name (numpy's or torch's), a
network, an open `Ticket` or checkpoint, or whatever reads tensors itself
(`pabzip.formats.Base`)."""


def open_base(source: BaseSource) -> Base:
    """Open a base; nothing but names, types and places is read.

    Args:
        source: as `BaseSource` says. A file is a .pabz file or a checkpoint of any form
            (`pabzip.packing.checkpoint_files.open_checkpoint`).

    Raises:
        BaseFileError: something is no tensor, or no base at all.
        CheckpointError: a file has another form, or is damaged.
        FormatError: a .pabz file is damaged.
        OSError: a file cannot be opened.
    """
    if isinstance(source, str | os.PathLike):
        return _open_file(source)
    if isinstance(source, Ticket):
        return _OfTicket(source, owned=False)
    if isinstance(source, Mapping):
        return _in_memory(source)
    given: Any = source
    if hasattr(given, "state_dict"):  # a checkpoint's is a mapping, a network's a method
        held = given.state_dict
        return _in_memory(full_state(given) if callable(held) else held)
    if hasattr(given, "read"):
        return _OfSource(given) if hasattr(given, "tensors") else cast(Base, given)
    raise BaseFileError(
        f"base: expected a path, tensors by name, a network or a Ticket, found {shown(source)}"
    )


def _open_file(file: str | os.PathLike[str]) -> Base:
    """Open a file, which may be one of ours."""
    if not os.path.isdir(file):
        with open(file, "rb") as opened:
            start = opened.read(len(MAGIC))
        if start == MAGIC:
            return _OfTicket(Ticket.open(file), owned=True)
    found = open_checkpoint(file)
    return _in_memory(found.state_dict) if hasattr(found, "state_dict") else _OfSource(found)


def _in_memory(tensors: Mapping[str, Any]) -> _OfSource:
    """Return tensors by name as a base."""
    try:
        return _OfSource(MemorySource(tensors))
    except PackError as error:
        raise BaseFileError(f"base: {error}") from None


class _OfSource:
    """An open checkpoint as a base, closed with it."""

    def __init__(self, source: Source):
        self._source = source

    def read(self, name: str) -> Found | None:
        """Return a tensor; one of a type that no file of ours holds is none."""
        described = self._source.tensors.get(name)
        if described is None or described.dtype not in DENSE_TYPES:
            return None
        return described.dtype, self._source.read(name)

    def close(self) -> None:
        """Close the checkpoint."""
        self._source.close()


class _OfTicket:
    """A ticket as a base."""

    def __init__(self, ticket: Ticket, *, owned: bool):
        self._ticket, self._owned = ticket, owned

    def read(self, name: str) -> Found | None:
        """Return a tensor, regenerated where it is seeded."""
        if name not in self._ticket.names:
            return None
        try:
            return self._ticket.dtype(name), self._ticket.exact(name)
        except BaseFileError as error:
            raise BaseFileError(
                f"base: {name}: expected a tensor, found a change of another file's; the base is "
                "itself a file of changes; unpack it first"
            ) from error

    def close(self) -> None:
        """Close the ticket, unless its caller opened it."""
        if self._owned:
            self._ticket.close()
