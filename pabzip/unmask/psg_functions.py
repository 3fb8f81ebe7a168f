"""Convolution and linear map with exact forward and predictive backward passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pabzip.unmask.psg_config import PsgConfig
from pabzip.unmask.quantise import largest_magnitude, levels


class PsgConvolution(torch.autograd.Function):
    """``torch.convolution`` whose gradients are products of quantised tensors.

    Source: Peek-a-Boo, Section 3.3.
    """

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: tuple[Any, ...],
        config: PsgConfig,
    ) -> Tensor:
        """Return the exact convolution; ``geometry`` holds the further arguments of the operator.

        These are stride, padding, dilation, transposed, output padding and groups, in that order.
        """
        return torch.convolution(x, weight, bias, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Remember the exact tensors; they are quantised when the backward pass needs them."""
        saved, weight, _, ctx.geometry, ctx.config = inputs
        ctx.save_for_backward(saved, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of input, weight and bias; None for those not asked for."""
        inputs, weight = ctx.saved_tensors

        def product(
            g: Tensor, x: Tensor, w: Tensor, wanted: tuple[bool, bool]
        ) -> tuple[Tensor | None, Tensor | None]:
            """Return the input and the weight gradient."""
            of_input, of_weight, _ = torch.ops.aten.convolution_backward(
                g, x, w, None, *ctx.geometry, (*wanted, False)
            )
            return of_input, of_weight

        of_input, of_weight = _predict(ctx, gradient, inputs, weight, product)
        channels_last = [0, *range(2, gradient.dim())]
        of_bias = gradient.sum(channels_last) if ctx.needs_input_grad[2] else None
        return of_input, of_weight, of_bias, None, None


class PsgLinear(torch.autograd.Function):
    """``torch.nn.functional.linear`` whose gradients are products of quantised tensors.

    Source: Peek-a-Boo, Section 3.3.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, config: PsgConfig) -> Tensor:
        """Return the exact linear map of the last dimension of ``x``."""
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Remember the exact tensors; they are quantised when the backward pass needs them."""
        saved, weight, _, ctx.config = inputs
        ctx.save_for_backward(saved, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of input, weight and bias; None for those not asked for."""
        inputs, weight = ctx.saved_tensors

        def product(
            g: Tensor, x: Tensor, w: Tensor, wanted: tuple[bool, bool]
        ) -> tuple[Tensor | None, Tensor | None]:
            """Return the input and the weight gradient."""
            of_input = g @ w if wanted[0] else None
            of_weight = None
            if wanted[1]:
                of_weight = g.reshape(-1, g.shape[-1]).T @ x.reshape(-1, x.shape[-1])
            return of_input, of_weight

        of_input, of_weight = _predict(ctx, gradient, inputs, weight, product)
        of_bias = None
        if ctx.needs_input_grad[2]:
            of_bias = gradient.reshape(-1, gradient.shape[-1]).sum(0)
        return of_input, of_weight, of_bias, None


Product = Callable[[Tensor, Tensor, Tensor, tuple[bool, bool]], tuple[Tensor | None, Tensor | None]]


def _predict(
    ctx: Any, gradient: Tensor, inputs: Tensor, weight: Tensor, product: Product
) -> tuple[Tensor | None, Tensor | None]:
    """Return input and weight gradients from quantised operands, and treat the small ones.

    The operands are whole numbers, their scales multiplied afterwards (see `levels`).
    """
    config: PsgConfig = ctx.config
    wants_input, wants_weight = ctx.needs_input_grad[:2]
    if not (wants_input or wants_weight):
        return None, None
    g, unit = levels(gradient, config.gradient_bits)
    x, x_unit = levels(inputs, config.input_bits) if wants_weight else (inputs, unit)
    w, w_unit = levels(weight, config.weight_bits) if wants_input else (weight, unit)
    of_input, of_weight = product(g, x, w, (wants_input, wants_weight))
    if of_input is not None:
        of_input.mul_(unit * w_unit)
    if of_weight is not None:
        of_weight.mul_(unit * x_unit)
    if of_weight is None or config.behaviour == "all":
        return of_input, of_weight
    limit = config.threshold * largest_magnitude(of_weight) if config.adaptive else config.threshold
    size = of_weight.abs()
    if config.behaviour == "remove":
        # A factor of 0 or 1 is several times faster on a CPU than filling through a mask.
        return of_input, of_weight.mul_(size.ge_(limit))
    _, exact = product(gradient, inputs, weight, (False, True))
    assert exact is not None
    return of_input, torch.where(size < limit, exact, of_weight)


def psg_linear(
    config: PsgConfig,
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Do what ``torch.nn.functional.linear`` does, with predictive gradients."""
    inputs, weight, bias = _autocast(input, weight, bias)
    return PsgLinear.apply(inputs, weight, bias, config)  # type: ignore[no-any-return]


def psg_conv(
    config: PsgConfig,
    input: Tensor,  # noqa: A002 (a caller may name it, as in torch)
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Do what ``torch.nn.functional.conv1d``, ``conv2d`` and ``conv3d`` do, predictively."""
    inputs, dimensions = input, weight.dim() - 2
    dilation = _each(dilation, dimensions)
    if padding == "valid":
        padding = 0
    elif padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        padding = [total // 2 for total in totals]
        if any(total % 2 for total in totals):
            # An even kernel pads one more on the far side; F.pad counts from the last dimension.
            inputs = F.pad(
                inputs, [side for t in reversed(totals) for side in (t // 2, t - t // 2)]
            )
            padding = 0
    geometry = (
        _each(stride, dimensions),
        _each(padding, dimensions),
        dilation,
        False,
        [0] * dimensions,
        groups,
    )
    return _convolve(config, inputs, weight, bias, geometry)


def psg_conv_transpose(
    config: PsgConfig,
    input: Tensor,  # noqa: A002 (a caller may name it, as in torch)
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Do what ``torch.nn.functional.conv_transpose1d`` to ``3d`` do, predictively."""
    dimensions = weight.dim() - 2
    geometry = (
        _each(stride, dimensions),
        _each(padding, dimensions),
        _each(dilation, dimensions),
        True,
        _each(output_padding, dimensions),
        groups,
    )
    return _convolve(config, input, weight, bias, geometry)


def _convolve(
    config: PsgConfig,
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: tuple[Any, ...],
) -> Tensor:
    """Convolve; the operator itself takes batches only, so a single input gets a batch of one."""
    inputs, weight, bias = _autocast(inputs, weight, bias)
    single = inputs.dim() == weight.dim() - 1
    output = PsgConvolution.apply(
        inputs.unsqueeze(0) if single else inputs, weight, bias, geometry, config
    )
    return output.squeeze(0) if single else output  # type: ignore[no-any-return]


def _autocast(
    inputs: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast as autocast would, where it is on; outside the functions, so autograd casts back."""
    kind = inputs.device.type
    # Of a device that knows no autocast, such as "meta", torch will not be asked.
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if not on or inputs.dtype == torch.float64:
        return inputs, weight, bias
    dtype = torch.get_autocast_dtype(kind)
    return inputs.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _each(value: Any, dimensions: int) -> list[int]:
    """Return one integer a dimension, from one for all or a sequence of them."""
    values = [value] if isinstance(value, int) else list(value)
    return values * dimensions if len(values) == 1 else values
