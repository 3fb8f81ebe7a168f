"""The linearized network whose synaptic flow is measured: absolute weights, linear operations."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pabzip.calls import Call, Output, named_tensors
from pabzip.errors import SearchError
from pabzip.search.gates import FlowOwners, Gates, seeds
from pabzip.search.isolation import CHECKPOINTED, NetworkCopy
from pabzip.search.layer_products import Product, read_call
from pabzip.search.linear_forms import linear_form
from pabzip.search.product_forms import attention_mask
from pabzip.search.starts import LookupStarts, call_of_shape, starting


class LinearizedForward(TorchFunctionMode):
    """Within it, a network computes by linear forms, and its layers' products are kept.

    Args:
        inputs: where the flow starts, leaf tensors that require a gradient; `start` adds more.
        weights: the weights by name, as the network will use them. Linear maps and convolutions
            by them are kept as `Product`; a use of any other kind (a transposed convolution, an
            embedding, a weight that is transformed first) is left to autograd.
        owners: which flow each number belongs to, kept from pass to pass; the first one says.

    Attributes:
        products: of each weight by name, in the order of the backward pass, which fills it.
        reached: names of the weights that met an activation.
    """

    def __init__(
        self,
        inputs: Iterable[Tensor],
        weights: Mapping[str, Tensor],
        owners: FlowOwners | None = None,
    ):
        super().__init__()
        self.products: dict[str, list[Product]] = {name: [] for name in weights}
        self.reached: set[str] = set()
        self._names = {id(weight): name for name, weight in weights.items()}
        self._starts: list[Tensor] = []
        # Nodes of autograd's graph that lead to a start, and nodes that do not.
        self._active: set[Any] = set()
        self._passive: set[Any] = {None}
        self._gates = Gates(self._is_activation)
        self._owners = FlowOwners() if owners is None else owners
        self._calls = 0  # of layers whose products are kept
        self._flow = 1  # the number of the flow whose backward pass it is
        for tensor in inputs:
            self.start(tensor)

    def start(self, tensor: Tensor) -> None:
        """Let the flow start at a leaf tensor, too."""
        self._starts.append(tensor)
        self._active.add(tensor.view_as(tensor).grad_fn.next_functions[0][0])  # type: ignore[union-attr]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        func, args, kwargs = _in_float64(func, args, kwargs or {})
        tensors = [tensor for _, tensor in named_tensors((args, kwargs))]
        active = any(self._is_activation(tensor) for tensor in tensors)
        if active:
            self.reached.update(self._names[id(t)] for t in tensors if id(t) in self._names)
        layer = read_call(func, args, kwargs)
        if layer is not None and layer.inputs.requires_grad and id(layer.weight) in self._names:
            output = layer.by_columns() if layer.small else layer.by(func)
            self._calls += 1
            if output.requires_grad:
                output.register_hook(partial(self._keep, layer, self._calls))  # type: ignore[no-untyped-call]
        elif active and func is F.multi_head_attention_forward:
            with self:
                output = _attention_steps(*args, **kwargs)
        else:
            output = linear_form(func, args, kwargs, self._gates) if active else NotImplemented
            if output is NotImplemented:
                output = func(*args, **kwargs)
        return output

    def gradients(
        self, total: Tensor, starts: Sequence[Tensor], weights: Sequence[Tensor], *, warn: bool
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Return the gradients by the starts of the main flow, and by the weights of all flows.

        Those by the weights are the rests, through uses that `products` does not have. The flows
        of gates follow the main one, in the order of `FlowOwners`. ``warn`` says whether to tell,
        the first time, of operations without a linear form.
        """
        # The starts are asked for in all flows, so that they meet every layer on their way.
        asked = [*starts, *weights, *self._gates.leaves]
        gated = bool(self._gates.leaves)
        found: Sequence[Tensor | None] = torch.autograd.grad(
            total, asked, allow_unused=True, retain_graph=gated
        )
        from_starts, rests = list(found[: len(starts)]), list(found[len(starts) :][: len(weights)])
        if gated:
            rests = self._owned(rests)
        while gated:
            reached = found[len(starts) + len(weights) :]
            values, gradients = seeds(self._gates, reached, self._owners, self._flow)
            if not values:
                break
            self._flow += 1
            found = torch.autograd.grad(
                values, asked, gradients, allow_unused=True, retain_graph=True
            )
            more = self._owned(found[len(starts) :][: len(weights)])
            rests = [_sum(one, other) for one, other in zip(rests, more, strict=True)]
        if not self._owners.settled:
            self._owners.settled = True
            if warn:
                self._warn_of_unknown(total)
        # The graph's hooks know this object; as it no longer knows the graph, that can be freed.
        self._gates = Gates(self._is_activation)
        self._active, self._passive = set(), {None}
        return from_starts, rests

    def _owned(self, rests: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the parts of the weights' gradients that belong to the flow."""
        return [
            None if rest is None else self._owners.own(("weight", number), rest, self._flow)
            for number, rest in enumerate(rests)
        ]

    def _keep(self, layer: Product, call: int, gradient: Tensor) -> None:
        """Keep a layer's product, whose gradient is known by now."""
        if self._gates.leaves:
            gradient = self._owners.own(("layer", call), gradient, self._flow)
            if self._flow > 1 and not bool(gradient.any()):
                return
        self.products[self._names[id(layer.weight)]].append(layer.after(gradient))

    def _warn_of_unknown(self, total: Tensor) -> None:
        """Warn of operations on activations that no linear form took the place of."""
        users: dict[Any, list[Any]] = {}
        nodes: list[Any] = [total.grad_fn, *(value.grad_fn for value in self._gates.values)]
        seen = set(nodes)
        while nodes:
            node = nodes.pop()
            for source, _ in node.next_functions:
                users.setdefault(source, []).append(node)
                if source is not None and source not in seen:
                    seen.add(source)
                    nodes.append(source)
        active = list(self._active)
        found: set[str] = set()
        while active:
            for node in users.pop(active.pop(), ()):
                active.append(node)
                found |= _unknown(node)
        if found:
            warnings.warn(
                f"synaptic flow: found {', '.join(map(repr, sorted(found)))} on the way from the "
                "input, without a linear form, so that the scores of layers before may be too "
                "small. Leave these layers out with skip=, or compute them by functions of torch "
                "that pabzip.search.linear_forms lists",
                stacklevel=2,
            )

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


@contextmanager
def _float64_by_default() -> Iterator[None]:
    """Make new tensors float64 within the block; put the caller's default back after it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _in_float64(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Return a call with float64 for other floating types, and for tensors of these.

    What is written to, or read bit by bit, stays as it is.
    """
    name: str = getattr(func, "__name__", "")
    if name in {"float", "half", "bfloat16"}:
        return Tensor.to, (args[0], torch.float64), {}
    if name in _AS_STORED or (name.endswith("_") and not name.endswith("__")) or "out" in kwargs:
        return func, args, kwargs

    def change(value: Any) -> Any:
        if isinstance(value, torch.dtype):
            return torch.float64 if value.is_floating_point else value
        if isinstance(value, Tensor):
            other = value.is_floating_point() and value.dtype != torch.float64
            return value.double() if other else value
        # Named tuples and the like are left alone, too.
        return type(value)(map(change, value)) if type(value) in (tuple, list) else value

    return func, tuple(map(change, args)), {key: change(value) for key, value in kwargs.items()}


_AS_STORED = frozenset({"view", "__get__", "__set__", "__setitem__"})
"""Functions whose tensors stay of the type they have, by torch's names."""


_NONLINEAR = frozenset({
    "Sigmoid", "Tanh", "Softmax", "LogSoftmax", "NativeLayerNorm", "NativeGroupNorm",
    "FusedRmsNorm", "Gelu", "Silu", "Elu", "Mish", "Hardtanh", "Hardsigmoid", "Hardswish",
    "Softplus", "LogSigmoid", "Exp", "Expm1", "Exp2", "Log", "Log1P", "Sin", "Cos", "Erf", "Pow",
    "Rsqrt", "Reciprocal", "Prod", "Cumprod", "Cdist", "EuclideanDist", "PdistForward",
    "LinalgCross", "LinalgDet", "LinalgInvEx", "LinalgSolveEx", "LinalgSvd", "LinalgEigh",
    "LinalgMatrixExp", "LinalgVectorNorm", "Norm", "Var", "Std", "Atan2", "Lgamma", "Digamma",
    "Logaddexp", "Logaddexp2", "Logcumsumexp", "Polygamma", "Xlogy", "GridSampler2D",
    "GridSampler3D", "Angle", "FftC2C", "FftR2C", "FftC2R",
})  # fmt: skip
"""Nodes of autograd's graph that no linear form leaves behind."""


def _unknown(node: Any) -> set[str]:
    """Return the name of an operation that was computed as it is; nothing for a linear one."""
    function = getattr(type(node), "_forward_cls", None)
    if function is not None:
        return set() if function.__module__.startswith("pabzip.") else {function.__name__}
    name = type(node).__name__.rstrip("0123456789").removesuffix("Backward")
    return {name} if name in _NONLINEAR or name.startswith("ScaledDotProduct") else set()


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Return the sum of two gradients, None for zero."""
    return other if one is None else one if other is None else one + other


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

    A buffer that is an additive mask of attention stays as it is. Calls run in evaluation mode. All
    of it is computed in float64: R is a product over the layers, and overflows float32 soon.

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
        buffers = {name for name, _ in self._net.named_buffers()}
        with torch.no_grad():
            for name, tensor in self._state.items():
                if tensor.is_floating_point():
                    masked = attention_mask(tensor) if name in buffers else None
                    tensor.abs_()
                    if masked is not None:
                        tensor[masked] *= -1.0
        self._inputs = inputs if isinstance(inputs, Call) else call_of_shape(inputs)
        self._owners = FlowOwners()

    def flow(self, *, warn: bool = True) -> Flow:
        """Return R and what its gradients are made of; raises what a call of the network does.

        ``warn`` says whether to tell, the first time, of operations without a linear form, which
        matter to scores and to nothing else.
        """
        with self.isolated(training=lambda _: False), self.swapped_in():
            call, starts = starting(self._inputs, self.device)
            with (
                _float64_by_default(),
                LinearizedForward(starts, self.weights, self._owners) as forward,
            ):
                lookups = LookupStarts(call, self._parameters, self.weights.values(), forward.start)
                with lookups:
                    total = self(call).sum()
            starts += lookups.starts
            if not starts:
                raise SearchError(
                    f"{self._where(call)}: expected a floating input for the flow to start at, or "
                    "integers that look up a parameter, as embeddings do, found neither; search "
                    "by magnitude or at random"
                )
            with self.derived():
                from_starts, rests = forward.gradients(
                    total, starts, list(self.weights.values()), warn=warn
                )
        return Flow(
            total=float(total.detach()),
            products=forward.products,
            rests=dict(zip(self.weights, rests, strict=True)),
            reached=forward.reached,
            from_inputs=[gradient for gradient in from_starts if gradient is not None],
        )

    def _forward(self, call: Call) -> Any:
        # What is computed again in the backward pass would be so without the linear forms.
        with torch.autograd.graph.disable_saved_tensors_hooks(CHECKPOINTED):
            return super()._forward(call)
