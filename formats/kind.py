"""What every kind of tensor says of itself: the seam between the kinds and the container.

A kind of tensor is two classes in a module of its own: the tensor in memory, and its entry in a
header, each a dataclass that has the fields and methods named here. Container, writer, reader,
validator, digest and report ask them, and know no kind by name; `pabzip.formats.contents.KINDS`
lists the kinds. What is the same for most kinds stands here once. A rule that is broken, by a file
or a ticket, raises `FormatError`; the message names the tensor, and counts the values at fault.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from pabzip.formats.limits import DENSE_TYPES

if TYPE_CHECKING:
    from pabzip.formats.contents import Entry, StoredEntry, StoredTensor, Tensor
    from pabzip.formats.dense import DenseEntry, DenseTensor


@dataclass(frozen=True, slots=True)
class Coding:
    """How the codes of one seeded tensor are kept: the coder's name, and bytes of its payload."""

    coder: str
    length: int


class EntryKind(Protocol):
    """What a header says of one tensor."""

    __slots__ = ()

    kind: ClassVar[str]
    """What reports call the kind."""

    row_lengths: ClassVar[tuple[int, ...]]
    """How many values a row of this kind may have in a header."""

    if TYPE_CHECKING:  # otherwise they would be the defaults of the dataclasses' fields

        @property
        def name(self) -> str:
            """The tensor's name in the network's state."""

        @property
        def shape(self) -> tuple[int, ...]:
            """The tensor's shape as a loader hands it out."""

        @property
        def dtype(self) -> str:
            """Torch's name of the element type that a loader hands out."""

        @property
        def survivors(self) -> int | None:
            """Number of codes that are not 0; None for a tensor without codes."""

    @property
    def count(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def weights(self) -> int:
        """Number of weights; as of elements, unless an element holds several."""
        return self.count

    @property
    def loaded_bytes(self) -> int:
        """Bytes of the tensor as a loader hands it out, in memory of its own."""
        return self.count * DENSE_TYPES[self.dtype].itemsize

    @property
    def expanded_bytes(self) -> int:
        """Of `loaded_bytes`, those that the file alone makes: the rest is read from its base."""
        return self.loaded_bytes

    @property
    def based(self) -> bool:
        """Whether the tensor is a change of one of another file, the base."""
        return False

    @property
    def version(self) -> int:
        """The format version that brought what the entry needs."""
        return 1

    @property
    def target(self) -> str | None:
        """Name of the earlier tensor that this one is a second name of; None for a tensor."""
        return None

    @property
    def original(self) -> StoredEntry:
        """The entry that says all but the name: this one, or that of the target."""
        return self  # type: ignore[return-value]  # the union of all kinds but one

    @property
    def parts(self) -> Sequence[DenseEntry]:
        """What the dense sections hold of the tensor, in order; each has the tensor's name."""
        return ()

    @property
    def code_parts(self) -> int:
        """How many of `parts`, the first, hold codes of weights."""
        return 0

    def check(self, place: str, earlier: Mapping[str, Entry]) -> None:
        """Check every rule of the kind that does not depend on how the tensor is coded.

        Args:
            place: where the tensor is, for messages.
            earlier: the entries before it, by name.
        """

    def to_row(self, coding: Coding | None) -> list[Any]:
        """Return the tensor's row of the header, as JSON values."""

    @classmethod
    def from_row(
        cls, place: str, row: list[Any], earlier: Mapping[str, Entry]
    ) -> tuple[Entry, Coding | None] | None:
        """Return the entry and the coding of a row, whose values may be of any JSON type.

        The row has one of `row_lengths`. None says that it has not the form of this kind; `check`
        holds the rest of the rules.
        """

    def tensor(self, codes: NDArray[np.int8] | None, parts: Sequence[DenseTensor]) -> Tensor:
        """Return the tensor that a file holds.

        Args:
            codes: int8, the tensor's shape, where the file has codes for it.
            parts: the tensors of `parts`; their arrays may be kept.
        """


class TensorKind(Protocol):
    """A tensor in memory."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def name(self) -> str:
            """The tensor's name in the network's state."""

    @property
    def parts(self) -> Sequence[DenseTensor]:
        """What the dense sections hold of the tensor, in order: those of its entry's `parts`."""
        return ()

    def tidy(self, place: str) -> Tensor:
        """Return the tensor with little-endian, C-contiguous arrays of the types it must have."""
        return self  # type: ignore[return-value]  # the union of all kinds

    def entry(self, earlier: Mapping[str, Entry], seed: int = 0) -> Entry:
        """Return what a header says of the tensor.

        Args:
            earlier: the entries before it, by name.
            seed: of the ticket, where an entry depends on what the seed draws.
        """

    def check_values(self) -> None:
        """Check values whose rules need a checked entry."""
        return

    def on_base(self, read: Callable[[], NDArray[Any]]) -> Tensor:
        """Return the tensor with a way to read the one of the base that it changes."""
        return self  # type: ignore[return-value]  # the union of all kinds

    def resolve(self, tensors: Mapping[str, Tensor]) -> StoredTensor:
        """Return the tensor itself, or the target of a second name, under that name."""
        return self  # type: ignore[return-value]  # the union of all kinds but one


class StoredKind(TensorKind, Protocol):
    """A tensor in memory that has elements of its own."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def shape(self) -> tuple[int, ...]:
            """The tensor's shape as a loader hands it out."""

        @property
        def dtype(self) -> str:
            """Torch's name of the element type that a loader hands out."""

    def array(
        self, seed: int, *, backend: str = "numba", threads: int | None = None
    ) -> NDArray[Any]:
        """Return the tensor as an array of its own type; bfloat16 as uint16 bit patterns."""

    def elements(
        self, seed: int, *, backend: str = "numba", threads: int | None = None
    ) -> Iterator[NDArray[Any]]:
        """Yield the elements that the digest takes: flat little-endian arrays, in order."""
        values = self.array(seed, backend=backend, threads=threads)
        yield values.astype(DENSE_TYPES[self.dtype].numpy, copy=False).reshape(-1)
