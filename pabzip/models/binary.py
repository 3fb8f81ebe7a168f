"""Options that every network of pabzip has: binary activations, plain batch norm, no biases."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import handle_torch_function, has_torch_function_unary

from pabzip.errors import ArchitectureError


class _Sign(torch.autograd.Function):
    """The sign, with the gradient of a quadratic spline."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: torch.Tensor) -> torch.Tensor:
        return values.sign()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = ctx.saved_tensors[0]
        return gradient * (2 * (1 - values.abs())).clamp_min(0)


def apply_variants(net: nn.Module, *, affine: bool, bias: bool, binary_activations: bool) -> None:
    """Change a network that is built, in place; nothing is drawn at random.

    Args:
        net: any network.
        affine: False takes weight and bias from every batch norm. Source: ``NonAffineBatchNorm`` of
            Ramanujan et al. 2020, which Multi-Prize Tickets and Rare Gems (Appendix A.2) use.
        bias: False takes the bias from every convolution and Linear layer. Source: the same.
        binary_activations: see `binarize_activations`.

    Raises:
        ArchitectureError: the network has no batch norm, or no ReLU, that could be changed.
    """
    if binary_activations:
        binarize_activations(net)
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    if not affine and not norms:
        raise ArchitectureError(
            f"option affine: expected a network with batch norm, found {type(net).__name__} "
            "without; leave affine out"
        )
    if not affine:
        for norm in norms:
            norm.affine = False
            norm.register_parameter("weight", None)
            norm.register_parameter("bias", None)
    if not bias:
        for module in net.modules():
            if isinstance(module, nn.Linear | _ConvNd):
                module.register_parameter("bias", None)


def sign(values: torch.Tensor) -> torch.Tensor:
    """Return -1, 0 or 1 by the sign of each value; its gradient is ``max(0, 2 * (1 - |x|))``.

    The gradient is that of a quadratic spline that rises from -1 at x = -1 to 1 at x = 1. Modes
    of torch that watch functions see this one as ``sign``, as they would see torch's own.

    Source: Diffenderfer & Kailkhura 2021 (Multi-Prize Tickets), Section 2.2.2, with t = 1; it
    equals the estimator of Bi-Real Net (Liu et al. 2018). Their code, too, gives 0 for 0.
    """
    if has_torch_function_unary(values):
        result: torch.Tensor = handle_torch_function(sign, (values,), values)
    elif torch.is_grad_enabled() and values.requires_grad:
        result = _Sign.apply(values)
    else:
        result = values.sign()  # which traces to one operator
    return result


class Sign(nn.Module):
    """The binary activation, see `sign`; any shape in, the same out."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sign of each value."""
        return sign(values)


class RealReLU(nn.ReLU):
    """A ReLU that stays one in a network of binary activations, where all others become `Sign`."""


class OnlyBinary(nn.Identity):
    """The identity, which becomes a `Sign` in a network of binary activations."""


def binarize_activations(net: nn.Module) -> None:
    """Replace every ReLU of a network by `Sign`, in place, and pool before it.

    Where a 2x2 max pool follows ReLU, it moves to directly after the convolution: convolution,
    pool, batch norm, sign. Nothing else moves; ReLU must be a module to be found, and batch norm
    is expected before each.

    Raises:
        ArchitectureError: there is no such ReLU.

    Source: Diffenderfer & Kailkhura 2021, Appendix A.1, after XNOR-Net (Rastegari et al. 2016);
    the order is that of ``Conv2_BinAct`` to ``Conv8_BinAct`` and ``ResNet_BinAct`` of their code.
    """
    for module in list(net.modules()):
        if isinstance(module, nn.Sequential):
            _pool_first(module)
    pool, relu = getattr(net, "maxpool", None), getattr(net, "relu", None)
    if isinstance(pool, nn.MaxPool2d) and isinstance(relu, nn.ReLU):  # the stem of torchvision's
        net.relu, net.maxpool = nn.Identity(), nn.Sequential(pool, relu)
    found = False
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if type(child) in (nn.ReLU, OnlyBinary):
                setattr(parent, name, Sign())
                found = True
    if not found:
        raise ArchitectureError(
            f"option binary_activations: expected a network with ReLU modules, found "
            f"{type(net).__name__} without; leave binary_activations out"
        )


def _pool_first(layers: nn.Sequential) -> None:
    """Move each max pool that follows batch norm and ReLU in front of both."""
    order = list(layers)
    for index in range(2, len(order)):
        norm, relu, pool = order[index - 2 : index + 1]
        if (
            isinstance(norm, _BatchNorm)
            and isinstance(relu, nn.ReLU)
            and isinstance(pool, nn.MaxPool2d)
        ):
            order[index - 2 : index + 1] = pool, norm, relu
    for index, layer in enumerate(order):
        layers[index] = layer
