"""The linearized network whose synaptic flow is measured: absolute weights, linear operations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pabzip.calls import Call, Output
from pabzip.errors import SearchError
from pabzip.search.isolation import NetworkCopy
from pabzip.search.layer_products import Product, read_call
from pabzip.search.linear_forms import linear_form
from pabzip.search.starts import LookupStarts, call_of_shape, starting


class LinearizedForward(TorchFunctionMode):
    """Within it, a network computes by linear forms, and its layers' products are kept.

    Args:
        inputs: where the flow starts, leaf tensors that require a gradient; `start` adds more.
        weights: the weights by name, as the network will use them. Linear maps and convolutions
            by them are kept as `Product`; a use of any other kind (a transposed convolution, an
            embedding, a weight that is transformed first) is left to autograd.

    Attributes:
        products: of each weight by name, in the order of the backward pass, which fills it.
        reached: names of the weights that met an activation.
    """

    def __init__(self, inputs: Iterable[Tensor], weights: Mapping[str, Tensor]):
        super().__init__()
        self.products: dict[str, list[Product]] = {name: [] for name in weights}
        self.reached: set[str] = set()
        self._names = {id(weight): name for name, weight in weights.items()}
        self._starts: list[Tensor] = []
        # Nodes of autograd's graph that lead to a start, and nodes that do not.
        self._active: set[Any] = set()
        self._passive: set[Any] = {None}
        for tensor in inputs:
            self.start(tensor)

    def start(self, tensor: Tensor) -> None:
        """Let the flow start at a leaf tensor, too."""
        self._starts.append(tensor)
        self._active.add(tensor.view_as(tensor).grad_fn.next_functions[0][0])  # type: ignore[union-attr]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = list(_tensors((args, kwargs)))
        active = any(self._is_activation(tensor) for tensor in tensors)
        if active:
            self.reached.update(self._names[id(t)] for t in tensors if id(t) in self._names)
        layer = read_call(func, args, kwargs)
        if layer is not None and layer.inputs.requires_grad and id(layer.weight) in self._names:
            output = layer.by_columns() if layer.small else layer.by(func)
            if output.requires_grad:
                output.register_hook(partial(self._keep, layer))  # type: ignore[no-untyped-call]
        elif active and func is F.multi_head_attention_forward:
            with self:
                output = _attention_steps(*args, **kwargs)
        else:
            output = (
                linear_form(func, args, kwargs, self._is_activation) if active else NotImplemented
            )
            if output is NotImplemented:
                output = func(*args, **kwargs)
        return output

    def _keep(self, layer: Product, gradient: Tensor) -> None:
        """Keep a layer's product, whose gradient is known by now."""
        self.products[self._names[id(layer.weight)]].append(layer.after(gradient))

    def _is_activation(self, value: object) -> bool:
        """Say whether a value depends on the input, and not through a detached tensor alone."""
        if not isinstance(value, Tensor) or not value.requires_grad:
            return False
        nodes: list[Any] = [value.grad_fn]
        seen = set()
        while nodes:
            node = nodes.pop()
            if node in self._active:
                self._active.add(value.grad_fn)
                return True
            if node not in self._passive and node not in seen:
                seen.add(node)
                nodes.extend(following for following, _ in node.next_functions)
        self._passive |= seen
        return any(value is start for start in self._starts)


def _tensors(value: object) -> Iterator[Tensor]:
    """Yield the tensors in nested sequences and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


_attention_steps = FunctionType(
    F.multi_head_attention_forward.__code__,
    # It hands itself to the mode as a whole if there is one; so told there is none, its steps are
    # seen by the mode one by one.
    {**vars(F), "has_torch_function": lambda _: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)
"""``F.multi_head_attention_forward``, whose steps each go through the mode."""


@dataclass(frozen=True, slots=True)
class Flow:
    """The synaptic flow of a network, and what its gradients are made of.

    The gradient of R by a weight is the sum of its products' parts and of its rest.

    Attributes:
        total: R, the sum of the outputs for inputs of ones.
        products: of each weight by name, as `LinearizedForward` keeps them.
        rests: gradients by each weight through its other uses; None where there are none.
        reached: names of the weights that met an activation.
        from_inputs: gradients of R by the tensors that the flow starts at.
    """

    total: float
    products: Mapping[str, list[Product]]
    rests: Mapping[str, Tensor | None]
    reached: set[str]
    from_inputs: Sequence[Tensor]

    @property
    def connected(self) -> bool:
        """Whether a path leads from an input to the output."""
        return any(bool(torch.any(gradient != 0)) for gradient in self.from_inputs)


class LinearizedNetwork(NetworkCopy):
    """A network with the absolute values of its parameters and buffers, and linear operations.

    Calls run in evaluation mode. All of it is computed in float64: R is a product over the layers,
    and overflows float32 soon.

    Args:
        net: any network whose output, or what ``output`` makes of it, is a floating tensor.
        weights: the weights that get gradients.
        inputs: a call, or the shape of one input without the batch dimension.
        output: from what the network returns to a tensor; None takes `pabzip.calls.main_output`.
    """

    def __init__(
        self,
        net: nn.Module,
        weights: Mapping[str, nn.Parameter],
        inputs: Call | Sequence[int],
        output: Output | None = None,
    ):
        super().__init__(net, weights, torch.float64, output)
        with torch.no_grad():
            for tensor in self._state.values():
                if tensor.is_floating_point():
                    tensor.abs_()
        self._inputs = inputs if isinstance(inputs, Call) else call_of_shape(inputs)

    def flow(self) -> Flow:
        """Return R and what its gradients are made of; raises what a call of the network does."""
        with self.isolated(training=lambda _: False):
            call, starts = starting(self._inputs, self.device)
            with LinearizedForward(starts, self.weights) as forward:
                lookups = LookupStarts(
                    call, self._by_original.values(), self.weights.values(), forward.start
                )
                with lookups:
                    total = self(call).sum()
            starts += lookups.starts
            if not starts:
                raise SearchError(
                    f"{self._where(call)}: expected a floating input for the flow to start at, or "
                    "integers that look up a parameter, as embeddings do, found neither; search "
                    "by magnitude or at random"
                )
            found = torch.autograd.grad(total, [*starts, *self.weights.values()], allow_unused=True)
        return Flow(
            total=float(total.detach()),
            products=forward.products,
            rests=dict(zip(self.weights, found[len(starts) :], strict=True)),
            reached=forward.reached,
            from_inputs=[gradient for gradient in found[: len(starts)] if gradient is not None],
        )
