"""Where a ticket's tensors come from: memory, or a file, whose name its faults then tell."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError
from pabzip.formats import (
    Contents,
    Reader,
    SeededTensor,
    StoredTensor,
    Tensor,
    encode_ticket,
    open_source,
    resolve,
)
from pabzip.formats.coder import Task, run_tasks

FUSED_BACKEND = "numba"
"""The backend that decodes and regenerates in one pass; others regenerate from decoded codes."""


class InMemory(dict[str, Tensor]):
    """Tensors in memory by name, with all that `Ticket` asks of a `Reader` of a file."""

    def __init__(self, contents: Contents, tensors: Iterable[Tensor]):
        super().__init__((tensor.name, tensor) for tensor in tensors)
        self._contents = contents

    def in_file(self) -> Reader:
        """Return a reader of the file that `Ticket.save` would write."""
        file = io.BytesIO()
        encode_ticket(self._contents, self.values()).write(file)
        return Reader(open_source(file.getbuffer()), max_bytes=self._contents.loaded_bytes)

    def weights(
        self, names: Iterable[str], *, threads: int | None = None, beside: Sequence[Task] = ()
    ) -> dict[str, NDArray[Any]]:
        """Regenerate seeded tensors, after what else is to be done ``beside`` that."""
        run_tasks(beside, threads)
        seed, backend = self._contents.seed, FUSED_BACKEND
        return {
            name: resolve(self, name).array(seed, backend=backend, threads=threads)
            for name in names
        }

    def resolved(self, name: str, threads: int | None = None) -> StoredTensor:
        """Return a tensor, of a tied one the target under the tied name; nothing is decoded."""
        return resolve(self, name)

    def scales(self, name: str) -> NDArray[np.float32] | None:
        """Return the scales of a seeded tensor's rows; None where it has none."""
        tensor = resolve(self, name)
        return tensor.scales if isinstance(tensor, SeededTensor) else None

    def coded(self, name: str) -> None:
        """Return None: nothing is encoded."""

    def check_sha256(self, found: str) -> None:
        """Do nothing: what is in no file has no digest to differ from."""

    def close(self) -> None:
        """Do nothing."""


class FaultsNamed(Mapping[str, Tensor]):
    """Tensors by name, whose faults name the file that they are read from."""

    def __init__(self, tensors: Mapping[str, Tensor], file: str | None):
        self._tensors, self._file = tensors, file

    def __getitem__(self, name: str) -> Tensor:
        with naming(self._file):
            return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@contextlib.contextmanager
def naming(file: str | None) -> Iterator[None]:
    """Add the file's name to a `FormatError`."""
    try:
        yield
    except FormatError as error:
        if file is None:
            raise
        raise error.in_file(file) from None
