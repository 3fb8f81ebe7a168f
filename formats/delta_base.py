"""The base of a delta file: how its tensors are asked for, and checked to be the right ones."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import BaseFileError
from pabzip.formats.delta import DeltaTensor
from pabzip.formats.dense import DenseTensor, from_stored, to_stored
from pabzip.formats.digest import StateDigest
from pabzip.formats.limits import DENSE_TYPES, tensor_place

if TYPE_CHECKING:
    from pabzip.formats.contents import Entry, Tensor


class Base(Protocol):
    """The tensors that deltas change, wherever they are."""

    def read(self, name: str) -> tuple[str, NDArray[Any]] | None:
        """Return a tensor's dtype and its values, as `DenseTensor` has them; None without it."""

    def close(self) -> None:
        """Let go of the source."""


class CheckedBase:
    """A base whose digest is compared with a file's own before any of its tensors is handed out.

    Args:
        base: its tensors; None where they are not at hand.
        entries: the tensors of the file that change one of the base's, in order.
        sha256: the digest of these in the base that the file was packed on.
    """

    def __init__(self, base: Base | None, entries: Sequence[Entry], sha256: str):
        self._base, self._entries, self._sha256 = base, entries, sha256
        self._lock, self._checked = threading.Lock(), False

    def check(self) -> None:
        """Read the base, once, and compare its digest.

        Raises:
            BaseFileError: there is none, a tensor is missing or of another shape or type, or the
                digest is another one.
        """
        with self._lock:
            if self._checked or not self._entries:
                return
            if self._base is None:
                raise BaseFileError(
                    f"base: expected the one that the file was packed on, with SHA-256 "
                    f"{self._sha256}, found none; give it with base=... (on the command line "
                    "--base FILE)"
                )
            digest = StateDigest(0)
            for entry in self._entries:
                values = self._fitting(entry)
                digest.add(DenseTensor(entry.name, values, entry.dtype, entry.dtype))
            if digest.hexdigest() != self._sha256:
                raise BaseFileError(
                    f"base: expected SHA-256 {self._sha256} of the {len(self._entries)} tensors "
                    f"that the file changes, found {digest.hexdigest()}; give the base that it was "
                    "packed on"
                )
            self._checked = True

    def read(self, entry: Entry) -> NDArray[Any]:
        """Return the base's tensor for an entry, of its shape and type; raises as `check` does."""
        self.check()
        return self._fitting(entry)

    def _fitting(self, entry: Entry) -> NDArray[Any]:
        """Return the base's tensor for an entry, which must fit, from a base not yet checked."""
        assert self._base is not None
        found = self._base.read(entry.name)
        values = None if found is None else fitting(*found, entry.dtype, entry.shape)
        if values is None:
            there = "none" if found is None else f"{found[0]} {list(found[1].shape)}"
            raise BaseFileError(
                f"base: {tensor_place(entry.name)}: expected {entry.dtype} {list(entry.shape)}, "
                f"found {there}; give the base that the file was packed on, with SHA-256 "
                f"{self._sha256}"
            )
        return values

    def close(self) -> None:
        """Let go of the base."""
        if self._base is not None:
            self._base.close()


def fitting(
    found: str, values: NDArray[Any], dtype: str, shape: tuple[int, ...]
) -> NDArray[Any] | None:
    """Return a tensor of a base as one of ``dtype`` and ``shape``, flat order kept; None otherwise.

    float32 values that bfloat16 holds exactly serve as bfloat16: numpy's files have no such type.
    """
    if values.shape != shape:
        return None
    if found == "float32" and dtype == "bfloat16":
        narrow = to_stored(values, found, dtype)
        same = from_stored(narrow, found, dtype).view("<u4") == values.view("<u4")
        return np.ascontiguousarray(narrow).reshape(shape) if same.all() else None
    if found != dtype:
        return None
    return np.asarray(values, dtype=DENSE_TYPES[dtype].numpy, order="C")


class BaseOfDeltas:
    """What deltas in memory change, and its digest: a `Base` that their file can be read on.

    It keeps the ways to read the base, and no delta.
    """

    def __init__(self) -> None:
        self._digest = StateDigest(0)
        self._reads: dict[str, tuple[str, Callable[[], NDArray[Any]]]] = {}

    def add(self, tensor: Tensor) -> None:
        """Take the next tensor of a ticket; what is no delta changes nothing.

        Raises:
            BaseFileError: the base of a delta is not at hand.
        """
        if isinstance(tensor, DeltaTensor):
            values = tensor.based_values()
            self._digest.add(DenseTensor(tensor.name, values, tensor.dtype, tensor.dtype))
            assert tensor.base is not None
            self._reads[tensor.name] = (tensor.dtype, tensor.base)

    @property
    def sha256(self) -> str:
        """The digest that a header names; empty without a delta."""
        return self._digest.hexdigest() if self._reads else ""

    def read(self, name: str) -> tuple[str, NDArray[Any]] | None:
        """Return what a delta changes."""
        if name not in self._reads:
            return None
        dtype, read = self._reads[name]
        return dtype, read()

    def close(self) -> None:
        """Do nothing: whoever opened the base closes it."""
