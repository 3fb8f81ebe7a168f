"""Layer inputs and gradients: a weight's gradient, without a tensor of its size for each part.

Autograd makes a new tensor of a weight's size for each gradient, which for large weights and small
inputs takes longer than the product itself. For linear maps and convolutions the two factors of
the gradient are kept instead, the layer's inputs and the gradient of its outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_COLUMNS = 2**21
"""Numbers that a convolution's inputs may be unfolded to; larger ones are left to torch."""


@dataclass(frozen=True, slots=True)
class Product:
    """One use of a weight: a linear map or a convolution.

    Its part of the weight's gradient is the sum, over all positions of the output, of the
    output's gradient there times the input that the weight met.

    Attributes:
        inputs: what the weight is multiplied with.
        weight: of the layer.
        bias: of the layer, or None.
        geometry: stride, padding (zeros on either side) and dilation of a convolution, each one
            number a size of the kernel, and its groups; empty for a linear map.
        gradient: the derivative of the outputs' sum by the product, once the backward pass has
            been there (`after`).
    """

    inputs: Tensor
    weight: Tensor
    bias: Tensor | None
    geometry: tuple[Any, ...] = ()
    gradient: Tensor | None = None

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
        weight = self.weight.detach()
        columns = self._columns().transpose(1, 2)
        output: Tensor = _RowProduct.apply(columns, weight.reshape(len(weight), -1))
        if self.bias is not None:
            output = output + self.bias
        output = output.transpose(1, 2).reshape(len(output), len(weight), *self._output_size())
        # No view: a step in place (an activation) would part it from what watches it.
        return output.clone(memory_format=torch.contiguous_format)

    def _columns(self) -> Tensor:
        """Return the inputs of a convolution of images, [B, weights of an output, positions]."""
        stride, padding, dilation, _ = self.geometry
        return F.unfold(self.inputs, tuple(self.weight.shape[2:]), dilation, padding, stride)

    def _output_size(self) -> tuple[int, ...]:
        """Return the height and width of a convolution's output."""
        sizes = zip(self.inputs.shape[2:], self.weight.shape[2:], *self.geometry[:3], strict=True)
        return tuple(
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in sizes
        )

    def after(self, gradient: Tensor) -> Product:
        """Return the product with the gradient of its output."""
        inputs = self.inputs.detach()
        if self.geometry and inputs.dim() == self.weight.dim() - 1:  # without the batch dimension
            inputs, gradient = inputs[None], gradient[None]
        return replace(self, inputs=inputs, gradient=gradient)

    def scaled(self, exponent: int, dtype: torch.dtype) -> Product:
        """Return the product in another dtype, its part of the gradient times ``2**-exponent``.

        Both factors are brought near 1 by powers of two, which round nothing, so that neither
        overflows where the part itself does not.
        """
        assert self.gradient is not None
        own = exponent_of(float(self.inputs.abs().max()))
        inputs = shifted(self.inputs, -own).to(dtype)
        gradient = shifted(self.gradient, own - exponent).to(dtype)
        return replace(self, inputs=inputs, gradient=gradient)

    def add_to(self, total: Tensor, *, first: bool) -> None:
        """Add the part of the gradient to ``total``, or, for the first part, write it there.

        ``total`` is contiguous, of the weight's shape, and in the dtype of the product.
        """
        if not self._plain:
            part = self._convolved(total)
            total.copy_(part) if first else total.add_(part)
            return
        rows, columns = self._matrices()
        torch.addmm(
            total.view(len(rows), -1), rows, columns.t(), beta=0.0 if first else 1.0,
            out=total.view(len(rows), -1),
        )  # fmt: skip

    def at(self, places: Tensor) -> Tensor:
        """Return the part of the gradient at some places of the flat weight alone, a vector."""
        if not self._plain:
            return self._convolved(self.weight.detach()).reshape(-1)[places]
        rows, columns = self._matrices()
        return (rows[places // len(columns)] * columns[places % len(columns)]).sum(1)

    @property
    def _plain(self) -> bool:
        """Whether `_matrices` can state the product."""
        if not self.geometry:
            return True
        assert self.gradient is not None
        columns = self.gradient[0, 0].numel() * math.prod(self.weight.shape[1:])
        return self.weight.dim() == 4 and self.geometry[-1] == 1 and columns <= MOST_COLUMNS

    def _matrices(self) -> tuple[Tensor, Tensor]:
        """Return gradients [outputs, positions] and inputs [weights of an output, positions]."""
        assert self.gradient is not None
        if not self.geometry:
            return self.gradient.flatten(0, -2).t(), self.inputs.flatten(0, -2).t()
        rows, columns = self.gradient.flatten(2), self._columns()
        return rows.transpose(0, 1).flatten(1), columns.transpose(0, 1).flatten(1)

    def _convolved(self, weight: Tensor) -> Tensor:
        """Return the part of the gradient as torch derives any convolution, from a shape alone."""
        stride, padding, dilation, groups = self.geometry
        found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            self.gradient, self.inputs, weight, None, stride, padding, dilation, False,
            [0] * len(stride), groups, [False, True, False],
        )  # fmt: skip
        return found[1]


def exponent_of(value: float) -> int:
    """Return e with ``2**(e - 1) <= value < 2**e``; 0 for what has none."""
    return math.frexp(value)[1] if math.isfinite(value) else 0


def shifted(values: Tensor, exponent: int) -> Tensor:
    """Return ``values * 2**exponent``, for any exponent that the result can bear."""
    half = exponent // 2
    return values * 2.0**half * 2.0 ** (exponent - half)


_FEW_POSITIONS = 128
"""Outputs a channel below which a convolution spends its time on reading the weight."""


class _RowProduct(torch.autograd.Function):
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


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Product | None:  # noqa: A002 (torch's name)
    """Read a call of ``linear``."""
    return Product(input, weight, bias) if input.dim() >= 2 and weight.dim() == 2 else None


def _convolution(
    input: Tensor,  # noqa: A002 (torch's name)
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Product | None:
    """Read a call of a convolution; padding in words is left to torch."""
    if isinstance(padding, str):
        return None
    sizes = weight.dim() - 2
    geometry = (_tuple(value, sizes) for value in (stride, padding, dilation))
    return Product(input, weight, bias, (*geometry, groups))


def _tuple(value: Any, length: int) -> tuple[int, ...]:
    """Return a number for each size, from one for all or one for each."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * length if len(values) == 1 else values


_READERS: dict[Any, Callable[..., Product | None]] = {
    F.linear: _linear,
    F.conv1d: _convolution,
    F.conv2d: _convolution,
    F.conv3d: _convolution,
}


def read_call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Product | None:
    """Return the layer that a call of torch computes; None where it is no layer of a known kind."""
    reader = _READERS.get(func)
    return None if reader is None else reader(*args, **kwargs)
