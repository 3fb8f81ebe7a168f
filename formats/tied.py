"""Tied tensors: second names of earlier ones, as of a weight that two layers share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pabzip.errors import FormatError, shown
from pabzip.formats.dense import DenseTensor
from pabzip.formats.kind import Coding, EntryKind, TensorKind
from pabzip.formats.limits import is_variance, tensor_place

if TYPE_CHECKING:
    from pabzip.formats.contents import Entry, StoredEntry, StoredTensor, Tensor


@dataclass(frozen=True, slots=True)
class TiedEntry(EntryKind):
    """What a header says of a tied tensor.

    Its row is ``[name, target]``.

    Attributes:
        name: the second name in the network's state.
        stored: the entry of the target, which says all else.
    """

    name: str
    stored: StoredEntry

    kind: ClassVar[str] = "tied"
    row_lengths: ClassVar[tuple[int, ...]] = (2,)
    survivors: ClassVar[None] = None

    @property
    def original(self) -> StoredEntry:
        """The entry of the target."""
        return self.stored

    @property
    def target(self) -> str:
        """Name of the earlier tensor."""
        return self.original.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of both."""
        return self.original.shape

    @property
    def dtype(self) -> str:
        """The element type of both."""
        return self.original.dtype

    @property
    def expanded_bytes(self) -> int:
        """Those of the target."""
        return self.original.expanded_bytes

    def check(self, place: str, earlier: Mapping[str, Entry]) -> None:
        """Check that the target stands before the tensor, and may be its target."""
        if _target(self.name, self.target, earlier) != self.original:
            raise FormatError(
                place, f"expected it to be like {shown(self.target)}, found a difference"
            )

    def to_row(self, coding: Coding | None) -> list[Any]:
        """Return the tensor's row."""
        return [self.name, self.target]

    @classmethod
    def from_row(
        cls, place: str, row: list[Any], earlier: Mapping[str, Entry]
    ) -> tuple[TiedEntry, None] | None:
        """Return the entry of a row; None where it is not two names."""
        if not all(isinstance(name, str) for name in row):
            return None
        return cls(row[0], _target(row[0], row[1], earlier)), None

    def tensor(self, codes: NDArray[np.int8] | None, parts: Sequence[DenseTensor]) -> TiedTensor:
        """Return the two names."""
        return TiedTensor(self.name, self.target)


@dataclass(frozen=True, slots=True)
class TiedTensor(TensorKind):
    """A second name of an earlier tensor, as of a weight that two layers share.

    Attributes:
        name: the second name in the network's state.
        target: name of an earlier tensor that is not tied itself.
    """

    name: str
    target: str

    def entry(self, earlier: Mapping[str, Entry], seed: int = 0) -> TiedEntry:
        """Return what a header says of the tensor."""
        return TiedEntry(self.name, _target(self.name, self.target, earlier))

    def resolve(self, tensors: Mapping[str, Tensor]) -> StoredTensor:
        """Return the target, under the tied name.

        Raises:
            KeyError: no tensor of the target's name that is not tied itself.
        """
        target = tensors[self.target]
        if isinstance(target, TiedTensor):  # no checked ticket holds one
            raise KeyError(f"{self.name}: expected {self.target} to be no tied tensor itself")
        return replace(target, name=self.name)


def _target(name: str, target: object, earlier: Mapping[str, Entry]) -> StoredEntry:
    """Return the entry that the tied tensor ``name`` is a second name of.

    That is an earlier one, not tied itself, and for a name of a variance a variance, too.
    """
    place = tensor_place(name)
    found = earlier.get(target) if isinstance(target, str) else None
    if found is None:
        raise FormatError(
            place, f"expected it tied to an earlier tensor, found it tied to {shown(target)}"
        )
    if found.target is not None:
        raise FormatError(
            place,
            f"expected it tied to a tensor of its own, found {shown(target)}, which is tied to "
            f"{shown(found.target)}",
        )
    if isinstance(name, str) and is_variance(name) and not is_variance(found.name):
        raise FormatError(place, f"expected a variance tied to one, found {shown(target)}")
    return found.original


def resolved(tensors: Mapping[str, Tensor]) -> Iterator[StoredTensor]:
    """Yield every tensor of a ticket, in order: of a tied one the target, under the tied name.

    Args:
        tensors: by name; may be lazy, and is asked for one tensor at a time.
    """
    for name in tensors:
        yield resolve(tensors, name)


def resolve(tensors: Mapping[str, Tensor], name: str) -> StoredTensor:
    """Return one tensor of a ticket; of a tied one the target, under the tied name.

    Raises:
        KeyError: no tensor of this name.
    """
    return tensors[name].resolve(tensors)
