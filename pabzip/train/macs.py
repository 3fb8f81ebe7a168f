"""Multiply-accumulates of a network, counted by passing one sample through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pabzip.train.modes import evaluation_mode


def count_macs(net: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    """Return the multiply-accumulates of each Conv and Linear layer, zero weights included.

    Args:
        net: any network; it stays as it is. Every Conv and Linear module that runs is counted, each
            time it runs. A layer whose weight is used by someone else's ``forward`` (as in
            ``nn.MultiheadAttention``) is not seen.
        input_shape: shape of one sample without the batch, such as ``(3, 32, 32)``.

    Returns:
        The counts by name of the layer's weight, in the order in which the layers first run.
    """
    macs: dict[str, int] = {}

    def count(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, named: Any, output: torch.Tensor) -> None:
            inputs = given[0] if given else named["input"]
            macs[name] = macs.get(name, 0) + _macs(module, inputs, output)

        return hook

    hooks: list[Any] = [
        module.register_forward_hook(
            count(f"{name}.weight" if name else "weight"), with_kwargs=True
        )
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
    return macs


def _macs(module: nn.Module, inputs: torch.Tensor, output: torch.Tensor) -> int:
    """Return weights times positions: each weight works once at each position.

    That holds for grouped convolutions too, whose weight has fewer input channels. A transposed
    convolution slides over the input.
    """
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    if isinstance(module, nn.Linear):
        return weight.numel() * (output.numel() // module.out_features)
    assert isinstance(module, _ConvNd)
    if isinstance(module, _ConvTransposeNd):
        return weight.numel() * (inputs.numel() // module.in_channels)
    return weight.numel() * (output.numel() // module.out_channels)
