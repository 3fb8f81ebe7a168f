"""Bit operations of a training step, the cost measure of the paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pabzip.train.modes import evaluation_mode

_FULL = 32


@dataclass(frozen=True, slots=True)
class LayerCost:
    """Multiply-accumulates of one Conv or Linear layer for one sample.

    Attributes:
        name: the layer's weight, by parameter name.
        macs: multiply-accumulates of the forward pass with all weights, zero or not.
        kept: fraction of its weights that the mask keeps, 1.0 without a mask.
        masked: whether there is a mask for it.
    """

    name: str
    macs: int
    kept: float
    masked: bool


def layer_costs(
    net: nn.Module,
    input_shape: tuple[int, ...],
    masks: Mapping[str, torch.Tensor] | None = None,
) -> list[LayerCost]:
    """Count multiply-accumulates layer by layer, by passing one sample through ``net``.

    Args:
        net: any network; every Conv and Linear module that runs is counted, each time it runs.
        input_shape: shape of one sample without the batch, such as ``(3, 32, 32)``.
        masks: bool tensors by weight name, True where a weight survives; layers without one count
            as dense.
    """
    masks = masks or {}
    kept = {name: float(mask.double().mean()) for name, mask in masks.items()}
    costs: list[LayerCost] = []

    def count(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            macs = _macs(module, inputs[0], output)
            costs.append(LayerCost(name, macs, kept.get(name, 1.0), name in kept))

        return hook

    hooks = [
        module.register_forward_hook(count(f"{name}.weight" if name else "weight"))
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear | _ConvNd)
    ]
    try:
        sample = next(net.parameters())
        with evaluation_mode(net), torch.no_grad():
            net(torch.zeros((1, *input_shape), device=sample.device, dtype=sample.dtype))
    finally:
        for handle in hooks:
            handle.remove()
    return costs


def bit_operations(
    net: nn.Module,
    input_shape: tuple[int, ...],
    masks: Mapping[str, torch.Tensor] | None = None,
    *,
    input_bits: int = _FULL,
    weight_bits: int = _FULL,
    gradient_bits: int = _FULL,
) -> float:
    """Return the BitOPs of one training step of one sample.

    A layer costs its multiply-accumulates, times the fraction of its weights that survive, times
    ``32 * 32`` for the forward pass (always in full precision) plus ``gradient_bits *
    weight_bits`` for the input's gradient plus ``gradient_bits * input_bits`` for the weight's.
    Where there are masks, a layer without one (a dense classifier) is dense and in full precision.
    Batch norm, activations and the optimisers count nothing.

    Args:
        net: as for `layer_costs`.
        input_shape: as for `layer_costs`.
        masks: as for `layer_costs`.
        input_bits: bits of layer inputs in the backward pass; 32 without PSG.
        weight_bits: bits of weights in the backward pass.
        gradient_bits: bits of output gradients.

    Source: Jin et al. 2020 (bit operations of a product of two numbers: the product of their
    bits), as used in Peek-a-Boo, Section 4.1 and Appendix B. Deviation: the first layer's input
    gradient is counted, though nothing needs it; the paper's own dense number includes it.
    """
    full = 3 * _FULL * _FULL
    reduced = _FULL * _FULL + gradient_bits * (weight_bits + input_bits)
    return sum(
        cost.macs * cost.kept * (reduced if cost.masked or masks is None else full)
        for cost in layer_costs(net, input_shape, masks)
    )


def _macs(module: nn.Module, inputs: torch.Tensor, output: torch.Tensor) -> int:
    """Return weights times positions: each weight works once at each position."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    if isinstance(module, nn.Linear):
        return weight.numel() * (output.numel() // module.out_features)
    assert isinstance(module, _ConvNd)
    if isinstance(module, _ConvTransposeNd):
        return weight.numel() * (inputs.numel() // module.in_channels)
    return weight.numel() * (output.numel() // module.out_channels)
