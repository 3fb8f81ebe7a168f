"""Read access to the tensors of a ticket, by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.formats import (
    Contents,
    DenseTensor,
    Reader,
    SeededEntry,
    SeededTensor,
    StoredTensor,
    Tensor,
    TiedEntry,
    bfloat16_to_float32,
    regenerated,
    resolve,
    state_sha256,
)
from pabzip.formats.coder import Coded
from pabzip.seeds import InitSpec

FUSED_BACKEND = "numba"
"""The backend that decodes and regenerates in one pass; others regenerate from decoded codes."""


class TicketTensors:
    """The tensors of a ticket: what is known of each, its codes or values, and its weights.

    What is known (names, shapes, specs) is always at hand; ``tensors`` may be lazy, and is asked
    for one tensor at a time. Every method that takes a name raises KeyError for an unknown one.

    A tied tensor answers as its target does; `tied` tells it apart.

    Args:
        contents: what the ticket holds.
        tensors: by name, each one of ``contents.entries``.
        file: name of the file that they are read from, for messages.
    """

    def __init__(self, contents: Contents, tensors: Mapping[str, Tensor], file: str | None):
        self._contents = contents
        self._entries = {entry.name: entry.original for entry in contents.entries}
        self._ties = {
            entry.name: entry.target for entry in contents.entries if isinstance(entry, TiedEntry)
        }
        self._tensors = tensors
        self._file = file

    @property
    def seed(self) -> int:
        """The 64-bit Philox key."""
        return self._contents.seed

    @property
    def file(self) -> str | None:
        """Name of the file that the tensors are read from, for messages; None without one."""
        return self._file

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, in the order of the network's state."""
        return tuple(self._entries)

    def kind(self, name: str) -> str:
        """Return ``"seeded"`` or ``"dense"``."""
        return "seeded" if isinstance(self._entries[name], SeededEntry) else "dense"

    def tied(self, name: str) -> str | None:
        """Return the name of the earlier tensor that this one is a second name of, or None."""
        if name not in self._entries:
            raise KeyError(name)
        return self._ties.get(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._entries[name].shape

    def dtype(self, name: str) -> str:
        """Return torch's name of a tensor's element type; seeded tensors are ``"float32"``."""
        entry = self._entries[name]
        return "float32" if isinstance(entry, SeededEntry) else entry.dtype

    def spec(self, name: str) -> InitSpec:
        """Return how the base weights of a seeded tensor are drawn."""
        entry = self._entries[name]
        if not isinstance(entry, SeededEntry):
            raise KeyError(f"{name}: expected a seeded tensor, found a dense one")
        return entry.spec

    def codes(self, name: str) -> NDArray[np.int8]:
        """Return the codes of a seeded tensor.

        Returns:
            int8, the weight's shape: 0 pruned, +1 the seed's sign kept, -1 flipped.

        Raises:
            FormatError: the tensor's part of the file is damaged.
            KeyError: no seeded tensor of this name.
        """
        return self._seeded_tensor(name).codes

    def scales(self, name: str) -> NDArray[np.float32] | None:
        """Return the scales of a seeded tensor's rows, float32 (rows,); None where it has none.

        Raises:
            FormatError: their part of the file is damaged.
            KeyError: no seeded tensor of this name.
        """
        self.spec(name)  # refuses a dense tensor
        if isinstance(self._tensors, Reader):
            with naming(self._file):
                return self._tensors.scales(name)
        return self._seeded_tensor(name).scales

    def dense(self, name: str) -> DenseTensor:
        """Return a dense tensor; its values as `DenseTensor` carries them.

        Raises:
            FormatError: the tensor's part of the file is damaged.
            KeyError: no dense tensor of this name.
        """
        tensor = self._tensor(name)
        if not isinstance(tensor, DenseTensor):
            raise KeyError(f"{name}: expected a dense tensor, found a seeded one")
        return tensor

    def weight(
        self, name: str, *, backend: str = "numba", threads: int | None = None
    ) -> NDArray[Any]:
        """Return any tensor as an ordinary array.

        Args:
            name: of a seeded or dense tensor.
            backend: of `pabzip.seeds.regenerate`; every backend gives the same bits.
            threads: likewise; None takes every CPU that the process may use.

        Returns:
            A seeded tensor regenerated, float32; a dense one in its own type, bfloat16 as float32
            of exactly the same values.

        Raises:
            FormatError: the tensor's part of the file is damaged.
            KeyError: no tensor of this name.
        """
        if backend == FUSED_BACKEND and self.kind(name) == "seeded":
            return self.weights([name], threads=threads)[name]
        tensor = self._tensor(name)
        if isinstance(tensor, SeededTensor):
            return self._regenerated(tensor, backend, threads)
        return bfloat16_to_float32(tensor.values) if tensor.dtype == "bfloat16" else tensor.values

    def arrays(
        self, *, backend: str = "numba", threads: int | None = None
    ) -> dict[str, NDArray[Any]]:
        """Return every tensor by name, each as `weight` gives it."""
        if backend != FUSED_BACKEND or not isinstance(self._tensors, Reader):
            return {
                name: self.weight(name, backend=backend, threads=threads) for name in self.names
            }
        found: dict[str, NDArray[Any]] = {}

        def read_dense() -> None:
            """Read the dense tensors while other threads decode."""
            dense = [name for name in self.names if self.kind(name) == "dense"]
            found.update({name: self.weight(name) for name in dense})

        seeded = [name for name in self.names if self.kind(name) == "seeded"]
        with naming(self._file):
            found.update(self._tensors.weights(seeded, threads=threads, beside=[read_dense]))
        return {name: found[name] for name in self.names}

    def sha256(self, *, backend: str = "numba", threads: int | None = None) -> str:
        """Return the SHA-256 of the regenerated state, computed anew, as 64 hexadecimal digits.

        Raises:
            FormatError: a part of the file is damaged.

        Source: formats/SPEC.md, section "The digest".
        """
        tensors = (self._tensor(name) for name in self.names)
        return state_sha256(self.seed, tensors, backend=backend, threads=threads)

    def weights(
        self, names: Iterable[str], *, threads: int | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Regenerate seeded tensors, in one go where they come from a file.

        Args:
            names: of seeded tensors.
            threads: as for `weight`; the work of all tensors is spread over them.

        Returns:
            New float32 arrays of the tensors' shapes, by name.

        Raises:
            FormatError: a tensor's part of the file is damaged.
            KeyError: no seeded tensor of a name.
        """
        if isinstance(self._tensors, Reader):
            with naming(self._file):
                return self._tensors.weights(names, threads=threads)
        return {
            name: self._regenerated(self._seeded_tensor(name), FUSED_BACKEND, threads)
            for name in names
        }

    def coded(self, name: str) -> Coded | None:
        """Return a seeded tensor as the file has it, for those who decode it on their own.

        Of a tied tensor this is the target, under the target's name.

        Returns:
            Its entry, payload and decoder; None where the ticket is in no file.

        Raises:
            FormatError: the tensor's part of the file is damaged.
            KeyError: no seeded tensor of this name.
        """
        if not isinstance(self._tensors, Reader):
            return None
        with naming(self._file):
            return self._tensors.coded(name)

    def _seeded_tensor(self, name: str) -> SeededTensor:
        """Return a seeded tensor; KeyError for another."""
        tensor = self._tensor(name)
        if not isinstance(tensor, SeededTensor):
            raise KeyError(f"{name}: expected a seeded tensor, found a dense one")
        return tensor

    def _regenerated(
        self, tensor: SeededTensor, backend: str, threads: int | None
    ) -> NDArray[np.float32]:
        """Return a seeded tensor's weights, in its shape."""
        flat = regenerated(self.seed, tensor, backend=backend, threads=threads)
        return flat.reshape(tensor.shape)

    def _tensor(self, name: str) -> StoredTensor:
        """Return a tensor, read from the file if there is one; of a tied one the target."""
        with naming(self._file):
            return resolve(self._tensors, name)


@contextlib.contextmanager
def naming(file: str | None) -> Iterator[None]:
    """Add the file's name to a `FormatError`."""
    try:
        yield
    except FormatError as error:
        if file is None:
            raise
        raise error.in_file(file) from None
