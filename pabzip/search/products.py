"""Products of a weight with its input, and the gradient of the weight that they give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_COLUMNS = 2**21
"""Numbers that a convolution's inputs may be unfolded to; larger ones are left to torch."""


@dataclass(frozen=True, slots=True)
class Product:
    """One use of a weight: a convolution or a linear map, after the backward pass.

    Its part of the weight's gradient is the sum, over all positions of the output, of the
    output's gradient there times the input that the weight met.

    Attributes:
        inputs: what the weight was multiplied with.
        gradient: the derivative of R by the product, of the product's shape.
        kernel: the weight's sizes beyond output and input channels; empty for a linear map.
        stride: of the convolution, one number a size of the kernel, as the next two.
        padding: zeros on either side.
        dilation: distance between the inputs that meet neighbouring weights.
        groups: of the convolution.
    """

    inputs: Tensor
    gradient: Tensor
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    def scaled(self, exponent: int, dtype: torch.dtype) -> Product:
        """Return the product in another dtype, its part of the gradient times ``2**-exponent``.

        Both factors are brought near 1 by powers of two, which round nothing, so that neither
        overflows where the part itself does not.
        """
        own = exponent_of(float(self.inputs.abs().max()))
        inputs = shifted(self.inputs, -own).to(dtype)
        gradient = shifted(self.gradient, own - exponent).to(dtype)
        return replace(self, inputs=inputs, gradient=gradient)

    def add_to(self, total: Tensor, *, first: bool) -> None:
        """Add the part of the gradient to ``total``, or, for the first part, write it there.

        Args:
            total: contiguous, of the weight's shape, in the dtype of the product.
            first: whether what ``total`` holds is to be forgotten.
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

    def at(self, places: Tensor, weight: Tensor) -> Tensor:
        """Return the part of the gradient at some places alone.

        Args:
            places: int64 positions in the flat weight, in row-major order.
            weight: the weight; its shape matters.

        Returns:
            A vector as long as ``places``, in the dtype of the product.
        """
        if not self._plain:
            return self._convolved(weight).reshape(-1)[places]
        rows, columns = self._matrices()
        return (rows[places // len(columns)] * columns[places % len(columns)]).sum(1)

    @property
    def _plain(self) -> bool:
        """Whether `_matrices` can state the product."""
        if not self.kernel:
            return True
        columns = self.gradient[0, 0].numel() * self.inputs.shape[1] * math.prod(self.kernel)
        return len(self.kernel) == 2 and self.groups == 1 and columns <= MOST_COLUMNS

    def _matrices(self) -> tuple[Tensor, Tensor]:
        """Return gradients [outputs, positions] and inputs [weights of an output, positions]."""
        if not self.kernel:
            return self.gradient.flatten(0, -2).t(), self.inputs.flatten(0, -2).t()
        columns = F.unfold(
            self.inputs, self.kernel, dilation=self.dilation, padding=self.padding,
            stride=self.stride,
        )  # fmt: skip
        rows = self.gradient.flatten(2)
        return rows.transpose(0, 1).flatten(1), columns.transpose(0, 1).flatten(1)

    def _convolved(self, weight: Tensor) -> Tensor:
        """Return the part of the gradient as torch derives any convolution."""
        found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            self.gradient, self.inputs, weight.to(self.inputs.dtype), None, self.stride,
            self.padding, self.dilation, False, [0] * len(self.kernel), self.groups,
            [False, True, False],
        )  # fmt: skip
        return found[1]


def empty_scores(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return contiguous tensors of the shapes of ``weights``, holding anything."""
    return {
        name: torch.empty(weight.shape, dtype=dtype, device=weight.device)
        for name, weight in weights.items()
    }


def write_gradient(total: Tensor, products: Sequence[Product], rest: Tensor | None) -> None:
    """Write a weight's gradient, the sum of its parts, to ``total``.

    Args:
        total: contiguous, of the weight's shape.
        products: the weight's, in the dtype of ``total``.
        rest: what else adds to the gradient, of the weight's shape.
    """
    if not products:
        total.zero_()
    for number, product in enumerate(products):
        product.add_to(total, first=number == 0)
    if rest is not None:
        total.add_(rest)


def exponent_of(value: float) -> int:
    """Return e with ``2**(e - 1) <= value < 2**e``; 0 for what has none."""
    return math.frexp(value)[1] if math.isfinite(value) else 0


def shifted(values: Tensor, exponent: int) -> Tensor:
    """Return ``values * 2**exponent``, for any exponent that the result can bear."""
    half = exponent // 2
    return values * 2.0**half * 2.0 ** (exponent - half)
