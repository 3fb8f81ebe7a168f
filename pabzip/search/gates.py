"""Gates (sigmoids, softmax, divisors) while synaptic flow is measured: held open, scored apart.

Where two activations are multiplied, one of them often only lets the other through: a sigmoid of
squeeze-and-excitation, the softmax of attention, the divisor of a norm. On the linearized network
such a gate is open, a constant, so the *main flow* is that of the network without the gate.

The gate's own layers get the *gate's flow*: a product is linear in each factor, so all that flows
through it also flows through the gate, and a path into the gate carries its share of it, ``flow *
contribution / gate``. The layers of a gate together thus carry as much as a layer in series with
it would, and a gate whose last weights go stops nothing in the main flow.

A gate's flow ends where it meets the main one: squeeze-and-excitation reads the activations that
it scales, but the layers that made them are scored by the main flow alone. What belongs to which
flow is settled once, on the network before it is pruned (`FlowOwners`).

Source: ours; Tanaka et al. 2020 have no gates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IsActivation = Callable[[object], bool]
"""Says whether an argument depends on the network's input."""

SIGNED, POSITIVE, WEIGHTS, DIVISOR = 1, 2, 3, 4
"""Ranks of gates: tanh, sigmoid, softmax, divisor. Of two factors the higher rank is the gate."""


@dataclass(frozen=True, slots=True)
class Gate:
    """What is known of a tensor that gates another one in a product.

    Attributes:
        opened: the gate when it is open, of the tensor's shape: its largest magnitude, or equal
            weights for a softmax.
        rank: of `SIGNED`, `POSITIVE`, `WEIGHTS` and `DIVISOR`.
    """

    opened: Tensor
    rank: int


class Gates:
    """The gates of one forward pass.

    Attributes:
        is_activation: says whether an argument depends on the network's input.
        values: of each gate that was a factor, in the order of the calls: its linear form.
        leaves: of each, the constant that took its place. Their gradients are the flow to seed.
    """

    def __init__(self, is_activation: IsActivation):
        self.is_activation = is_activation
        self.values: list[Tensor] = []
        self.leaves: list[Tensor] = []
        self._known: dict[tuple[Any, int], Gate] = {}

    def of(self, value: object) -> Gate | None:
        """Return what a value is as a factor; None for no gate."""
        if not self._known or not isinstance(value, Tensor) or value.grad_fn is None:
            return None
        return self._known.get((value.grad_fn, value.output_nr))

    def rank(self, value: object) -> int:
        """Return the rank of a value, 0 for no gate."""
        gate = self.of(value)
        return 0 if gate is None else gate.rank

    def mark(self, value: Tensor, opened: Tensor | float, rank: int) -> Tensor:
        """Make an activation a gate, and return it."""
        if value.grad_fn is not None:
            one = value.detach().new_tensor(opened) if isinstance(opened, int | float) else opened
            gate = Gate(one.detach().expand(value.shape), rank)
            self._known[value.grad_fn, value.output_nr] = gate
        return value

    def mark_as(self, value: Tensor, other: object) -> Tensor:
        """Make an activation the gate that another one is, if it is one, and return it."""
        gate = self.of(other)
        return value if gate is None else self.mark(value, gate.opened, gate.rank)

    def through(
        self, product: Callable[[Tensor], Tensor], value: Tensor, opened: Tensor | float | None
    ) -> Tensor:
        """Return a product with a gate that is open.

        Args:
            product: gives the product for the gate's value.
            value: the gate's linear form.
            opened: what it is when open; None takes what it was marked with.
        """
        if opened is None:
            gate = self.of(value)
            assert gate is not None
            opened = gate.opened
        elif isinstance(opened, int | float):
            opened = torch.full_like(value.detach(), opened)
        leaf = opened.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        self.values.append(value)
        self.leaves.append(leaf)
        return product(leaf)


class FlowOwners:
    """Which flow each number of a network belongs to: the main one, or one of a number of gates.

    Flow 1 is the main one, flow 2 that of its gates, flow 3 that of gates of flow 2, and so on. The
    first forward pass settles all, so that a part which pruning cut off from the main flow does
    not turn into a part of a gate.
    """

    def __init__(self) -> None:
        self._owners: dict[tuple[str, int], Tensor] = {}
        self.settled = False

    def own(self, key: tuple[str, int], gradient: Tensor, flow: int) -> Tensor:
        """Return the part of a gradient that belongs to its flow; ``key`` says of what it is."""
        owner = self._owners.get(key)
        if not self.settled:
            if owner is None:
                owner = self._owners[key] = torch.zeros_like(gradient, dtype=torch.int8)
            owner[(owner == 0) & (gradient != 0)] = flow
        if owner is None or owner.shape != gradient.shape:  # the network took another way
            return gradient if flow == 1 else torch.zeros_like(gradient)
        return torch.where(owner == flow, gradient, 0.0)


def seeds(
    gates: Gates, gradients: Sequence[Tensor | None], owners: FlowOwners, flow: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gates that a flow passes, and the gradients by them that start the next one.

    Args:
        gates: of the forward pass.
        gradients: of the flow, by each of the gates' constants.
        owners: say which part of them is this flow's.
        flow: its number.
    """
    values, starts = [], []
    for number, (value, leaf, gradient) in enumerate(
        zip(gates.values, gates.leaves, gradients, strict=True)
    ):
        if gradient is None:
            continue
        amount = owners.own(("gate", number), gradient, flow) * leaf.detach()
        own = value.detach()
        alive = (own != 0) & (amount != 0)
        if bool(alive.any()):
            values.append(value)
            starts.append(torch.where(alive, amount / torch.where(alive, own, 1.0), 0.0))
    return values, starts
