"""What share of a network is seeded, and of each tensor that is not the reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pabzip.selection import DEFAULT_KINDS, drawable

if TYPE_CHECKING:
    from torch import nn

    from pabzip.init import Seeding


@dataclass(frozen=True)
class TensorReport:
    """One tensor of a network's state.

    Attributes:
        name: in the network's state.
        shape: of the tensor.
        seeded: whether its weights come from the seed.
        reason: why a dense one does not, such as ``"bias"`` or ``"norm"``; of a seeded one, what it
            is: ``"weight"``, ``"buffer"``, or ``"tied to"`` another name of it.
    """

    name: str
    shape: tuple[int, ...]
    seeded: bool
    reason: str

    @property
    def values(self) -> int:
        """Number of elements, 1 for a scalar."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class InitReport:
    """What of a network is seeded; its text is one line.

    Attributes:
        network: name of the network's class.
        seed: the 64-bit Philox key.
        tensors: one for each name in the network's state, in its order.
    """

    network: str
    seed: int
    tensors: tuple[TensorReport, ...]

    @property
    def seeded(self) -> int:
        """Number of values that come from the seed, those of a tied tensor once."""
        return sum(tensor.values for tensor in self._stored if tensor.seeded)

    @property
    def values(self) -> int:
        """Number of values in the network's state, those of a tied tensor once."""
        return sum(tensor.values for tensor in self._stored)

    @property
    def share(self) -> float:
        """Fraction of the values that come from the seed, 0 to 1; of values, not of bytes."""
        return self.seeded / max(self.values, 1)

    @property
    def dense(self) -> dict[str, int]:
        """Number of dense values by reason, the largest first."""
        counts: Counter[str] = Counter()
        for tensor in self._stored:
            if not tensor.seeded:
                counts[tensor.reason] += tensor.values
        return dict(counts.most_common())

    @property
    def _stored(self) -> list[TensorReport]:
        """The tensors but for second names."""
        return [tensor for tensor in self.tensors if not tensor.reason.startswith("tied to ")]

    def __str__(self) -> str:
        dense = ", ".join(f"{count:,} {reason}" for reason, count in self.dense.items())
        return (
            f"{self.network}: {self.seeded:,} of {self.values:,} values ({self.share:.1%}) from "
            f"seed {self.seed}; dense: {dense or 'none'}"
        )


def report(net: nn.Module, seeding: Seeding) -> InitReport:
    """Return what ``seeding`` covers of ``net``."""
    parameters = dict(net.named_parameters(remove_duplicate=False))
    held: dict[str, torch.Tensor] = {
        **parameters,
        **dict(net.named_buffers(remove_duplicate=False)),
    }
    seeded = {id(held[name]): name for name in reversed(list(seeding.specs)) if name in held}
    known = {name: weight.kind for name, weight in drawable(net).items()}
    first: dict[int, str] = {}
    tensors = []
    for name, value in net.state_dict().items():
        own = held.get(name)
        stored = seeded.get(id(own)) or first.setdefault(id(own), name)
        if own is not None and stored != name:
            reason = f"tied to {stored}"
        elif id(own) in seeded:
            reason = "weight" if name in parameters else "buffer"
        else:
            reason = _reason(net, name, own, known.get(name))
        shape = tuple(getattr(value, "shape", ()))  # extra state has none
        tensors.append(TensorReport(name, shape, id(own) in seeded, reason))
    return InitReport(type(net).__name__, seeding.seed, tuple(tensors))


def _reason(net: nn.Module, name: str, value: torch.Tensor | None, kind: str | None) -> str:
    """Return why a tensor is dense; ``kind`` is that of a weight that `init_` knows how to draw."""
    if kind is not None:
        return f"{kind} left out" if kind in DEFAULT_KINDS else f"{kind} not asked for"
    prefix, _, last = name.rpartition(".")
    if value is None:
        return "other state"
    if not isinstance(value, torch.nn.Parameter):
        return "buffer"
    holder = type(net.get_submodule(prefix)).__name__
    if "norm" in holder.lower():
        return "norm"
    return "bias" if "bias" in last else f"parameter of {holder}"
