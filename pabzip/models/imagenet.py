"""Residual networks in their ImageNet form, as torchvision builds them, without its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pabzip._optional import torchvision_part


def imagenet_resnet(
    constructor: str,
    *,
    num_classes: int,
    in_channels: int,
    device: torch.device | str | None = None,
) -> nn.Module:
    """Return a residual network of torchvision, freshly initialized by its own rules.

    Input ``float[N, in_channels, H, W]`` of any size, output ``float[N, num_classes]`` (logits).
    Parameters have torchvision's names, so its checkpoints fit.

    Args:
        constructor: function of ``torchvision.models``, such as ``"resnet50"``.
        num_classes: number of logits.
        in_channels: channels of the input; for other than 3 the first convolution is replaced, and
            drawn as torchvision draws its own.
        device: where the parameters are made.

    Raises:
        MissingDependencyError: torchvision is missing or does not match torch.

    Source: He et al. 2016, Table 1, with the stride of a bottleneck on its 3x3 convolution;
    Zagoruyko & Komodakis 2016, Section 3 (WideResNet-50-2: bottlenecks of twice the inner width).
    """
    construct = getattr(
        torchvision_part("models", purpose=f"architecture {constructor}"), constructor
    )
    with _float32(), torch.device("cpu" if device is None else device):
        net: nn.Module = construct(weights=None, num_classes=num_classes)
        stem = net.conv1
        assert isinstance(stem, nn.Conv2d)
        if in_channels != stem.in_channels:
            net.conv1 = nn.Conv2d(
                in_channels, stem.out_channels, 7, stride=2, padding=3, bias=False
            )
            nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    return net


@contextmanager
def _float32() -> Iterator[None]:
    """Make float32 the default, which torchvision's constructors follow, for a while."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
