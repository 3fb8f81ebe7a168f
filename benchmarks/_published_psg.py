"""PSG as it was published to run: every convolution twice, in both directions.

The layer computes an exact and a quantized output and hands on the exact one. Its output gradient
goes back through both, which makes an exact and a predicted gradient of weight and input; small
predicted weight gradients are removed. Our quantizer stands in for the published one, which takes
more passes, so this is the least that the published way costs.

Source: Wang et al. 2019, Section 3.3, and the structure of the code published with Peek-a-Boo.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pabzip.unmask import PsgConfig, quantize


class _Weights(torch.autograd.Function):
    """The weight twice, exact and quantized; backward keeps the predicted gradient where large."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, config: PsgConfig) -> tuple[Tensor, Tensor]:
        ctx.threshold = config.threshold
        return weight.view_as(weight), quantize(weight, config.weight_bits)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        _, predicted = gradients
        size = predicted.abs()
        return predicted * (size >= ctx.threshold * size.max()), None


class _Inputs(torch.autograd.Function):
    """The input twice, exact and quantized; the predicted gradient alone goes on."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, config: PsgConfig) -> tuple[Tensor, Tensor]:
        return inputs.view_as(inputs), quantize(inputs, config.input_bits)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[1], None


class _Outputs(torch.autograd.Function):
    """The exact output; its gradient goes to the exact layer, and quantized to the other."""

    @staticmethod
    def forward(ctx: Any, exact: Tensor, predicted: Tensor, config: PsgConfig) -> Tensor:
        ctx.bits = config.gradient_bits
        return exact.view_as(exact)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        return gradients[0], quantize(gradients[0], ctx.bits), None


def apply_published_psg(net: nn.Module, config: PsgConfig) -> None:
    """Let every convolution of ``net`` run twice from now on."""

    def twice(layer: nn.Conv2d, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        exact_input, rough_input = _Inputs.apply(inputs, config)
        exact_weight, rough_weight = _Weights.apply(weight, config)
        exact = F.conv2d(exact_input, exact_weight, bias, *geometry)
        rough = F.conv2d(rough_input, rough_weight, bias, *geometry)
        return _Outputs.apply(exact, rough, config)

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module._conv_forward = MethodType(twice, module)
