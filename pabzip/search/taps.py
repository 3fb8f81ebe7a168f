"""Catch the products of given weights on their way through a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pabzip.search.products import MOST_COLUMNS, Product

_FEW_POSITIONS = 128
"""Outputs a channel below which a convolution spends its time on reading the weight."""


class Taps(TorchFunctionMode):
    """Within it, linear maps and convolutions by given weights are caught.

    Autograd makes a new tensor of a weight's size for each gradient, which for large weights and
    small inputs takes longer than the product itself. Here autograd passes such weights by, and
    what it would have multiplied is kept instead. A use of any other kind (a transposed
    convolution, an embedding, a weight that is transformed first) is left to autograd.

    Args:
        weights: the weights by name, as the network will use them.

    Attributes:
        products: of each weight by name, in the order of the backward pass, which fills it.
    """

    def __init__(self, weights: Mapping[str, Tensor]):
        super().__init__()
        self.products: dict[str, list[Product]] = {name: [] for name in weights}
        self._names = {id(weight): name for name, weight in weights.items()}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        reader = _READERS.get(func)
        call = None if reader is None else reader(*args, **kwargs)
        if call is None or not call.inputs.requires_grad or id(call.weight) not in self._names:
            return func(*args, **kwargs)
        output = call.by_columns() if call.small else call.by(func)
        if output.requires_grad:
            output.register_hook(partial(self._caught, call))  # type: ignore[no-untyped-call]
        return output

    def _caught(self, call: _Call, gradient: Tensor) -> None:
        """Keep a product whose gradient is known."""
        self.products[self._names[id(call.weight)]].append(call.product(gradient))


class _Rows(torch.autograd.Function):
    """``rows @ weight.T``, without a gradient for the weight.

    In both passes the weight stands on the right, where BLAS reads a large one twice to four times
    as fast as on the left, which is where a convolution puts it.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        """Multiply ``[..., inputs]`` by ``[outputs, inputs]``."""
        ctx.save_for_backward(weight)
        return rows @ weight.t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the rows."""
        (weight,) = ctx.saved_tensors
        return gradients[0].contiguous() @ weight, None


class _Call:
    """The arguments of one linear map or convolution, every one of them in its place."""

    __slots__ = ("bias", "geometry", "inputs", "weight")

    def __init__(self, inputs: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any):
        self.inputs, self.weight, self.bias, self.geometry = inputs, weight, bias, geometry

    @property
    def small(self) -> bool:
        """Whether the weight is large for the inputs, and the convolution a plain one of images."""
        if self.weight.dim() != 4 or self.inputs.dim() != 4 or self.geometry[-1] != 1:
            return False
        positions = len(self.inputs) * math.prod(self._output_size())
        columns = positions * self.weight[0].numel()
        return 0 < positions <= _FEW_POSITIONS and columns <= MOST_COLUMNS

    def by(self, func: Any) -> Tensor:
        """Return the output as the network asks for it."""
        output: Tensor = func(self.inputs, self.weight.detach(), self.bias, *self.geometry)
        return output

    def by_columns(self) -> Tensor:
        """Return the output of a `small` convolution, as a product of matrices."""
        stride, padding, dilation, _ = self.geometry
        weight = self.weight.detach()
        kernel = tuple(weight.shape[2:])
        columns = F.unfold(self.inputs, kernel, dilation, padding, stride)
        output: Tensor = _Rows.apply(columns.transpose(1, 2), weight.reshape(len(weight), -1))
        if self.bias is not None:
            output = output + self.bias
        output = output.transpose(1, 2).reshape(len(output), len(weight), *self._output_size())
        # No view: a step in place (an activation) would part it from what watches it.
        return output.clone(memory_format=torch.contiguous_format)

    def _output_size(self) -> tuple[int, ...]:
        """Return the height and width of a convolution's output."""
        sizes = zip(self.inputs.shape[2:], self.weight.shape[2:], *self.geometry[:3], strict=True)
        return tuple(
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in sizes
        )

    def product(self, gradient: Tensor) -> Product:
        """Return the product, with the gradient of its output."""
        inputs = self.inputs.detach()
        kernel = tuple(self.weight.shape[2:])
        if not kernel:
            return Product(inputs, gradient)
        if inputs.dim() == len(kernel) + 1:  # without the batch dimension
            inputs, gradient = inputs[None], gradient[None]
        stride, padding, dilation, groups = self.geometry
        return Product(inputs, gradient, kernel, stride, padding, dilation, groups)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> _Call | None:  # noqa: A002 (torch's name)
    """Read a call of ``linear``."""
    return _Call(input, weight, bias) if input.dim() >= 2 and weight.dim() == 2 else None


def _convolution(
    input: Tensor,  # noqa: A002 (torch's name)
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> _Call | None:
    """Read a call of a convolution; padding in words is left to torch."""
    if isinstance(padding, str):
        return None
    sizes = weight.dim() - 2
    geometry = (_tuple(value, sizes) for value in (stride, padding, dilation))
    return _Call(input, weight, bias, *geometry, groups)


def _tuple(value: Any, length: int) -> tuple[int, ...]:
    """Return a number for each size, from one for all or one for each."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * length if len(values) == 1 else values


_READERS: dict[Any, Callable[..., _Call | None]] = {
    F.linear: _linear,
    F.conv1d: _convolution,
    F.conv2d: _convolution,
    F.conv3d: _convolution,
}
