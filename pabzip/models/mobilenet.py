"""MobileNetV2 in its CIFAR form: depthwise convolutions between narrow layers."""

from __future__ import annotations

import torch
from torch import nn

from pabzip.models.resnet import conv
from pabzip.registry import register_network

# Expansion, channels (for a stem of 32), blocks, stride of the first block.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM, _HEAD = 32, 1280


class InvertedResidual(nn.Module):
    """A widening 1x1, a depthwise 3x3 and a narrowing 1x1 convolution, each with batch norm.

    ``float[N, inputs, H, W] -> float[N, channels, ceil(H / stride), ceil(W / stride)]``. The last
    convolution is linear: no activation follows it. The input is added where the shape stays.

    Args:
        inputs: channels that come in.
        channels: channels of the output.
        stride: stride of the depthwise convolution.
        expansion: the depthwise convolution has ``expansion * inputs`` channels; for 1 there is no
            widening convolution.
        full: have one all the same, and a shortcut wherever the stride is 1: a 1x1 convolution with
            batch norm where the number of channels changes.

    Source: Sandler et al. 2018, Table 1 and Figure 4 (d). Deviation: ReLU in place of ReLU6, whose
    gradient is zero above 6, where a search by synaptic flow looks.
    """

    def __init__(self, inputs: int, channels: int, stride: int, expansion: int, *, full: bool):
        super().__init__()
        hidden = expansion * inputs
        widening = [] if expansion == 1 and not full else active_conv(inputs, hidden, 1)
        depthwise = active_conv(hidden, hidden, 3, stride, groups=hidden)
        narrowing = active_conv(hidden, channels, 1)[:-1]
        self.layers = nn.Sequential(*widening, *depthwise, *narrowing)
        self.adds = stride == 1 and (full or inputs == channels)
        self.shortcut: nn.Module = nn.Identity()
        if self.adds and inputs != channels:
            self.shortcut = nn.Sequential(*active_conv(inputs, channels, 1)[:-1])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        hidden: torch.Tensor = self.layers(inputs)
        return self.shortcut(inputs) + hidden if self.adds else hidden


@register_network("mobilenetv2", options={"width": 32}, variants={"full_blocks": False})
class MobileNetV2(nn.Module):
    """A 3x3 stem, 17 blocks in 7 stages, a 1x1 head, global average pooling, one Linear ``fc``.

    Input ``float[N, in_channels, H, W]`` of any size, output ``float[N, num_classes]`` (logits);
    height and width are halved three times.

    Args:
        num_classes, in_channels, image_size: as for `pabzip.models.resnet.ResNet`.
        width: channels of the stem, 32 in the paper; all others follow in proportion, rounded down
            to whole channels, at least 1.
        full_blocks: ``full`` of every `InvertedResidual`.

    Source: Sandler et al. 2018, Table 2, with stride 1 in the stem and in the second stage, the
    common form on CIFAR. ``full_blocks affine=false bias=false`` is the form of Rare Gems, Table 7,
    and of their code.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int,
        width: int,
        full_blocks: bool,
    ):
        super().__init__()
        blocks: list[nn.Module] = []
        inputs = width
        for expansion, published, depth, first in _STAGES:
            channels = _scaled(published, width)
            for index in range(depth):
                stride = first if index == 0 else 1
                blocks.append(
                    InvertedResidual(inputs, channels, stride, expansion, full=full_blocks)
                )
                inputs = channels
        head = _scaled(_HEAD, width)
        self.stem = nn.Sequential(*active_conv(in_channels, width, 3))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*active_conv(inputs, head, 1))
        self.fc = nn.Linear(head, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits ``float[N, num_classes]``."""
        hidden = self.head(self.blocks(self.stem(images))).mean(dim=(2, 3))
        logits: torch.Tensor = self.fc(hidden)
        return logits


def active_conv(
    inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Return a convolution, its batch norm and ReLU."""
    return [conv(inputs, outputs, size, stride, groups=groups), nn.BatchNorm2d(outputs), nn.ReLU()]


def _scaled(channels: int, width: int) -> int:
    """Return the channels of a layer for a stem of ``width``."""
    return max(1, channels * width // _STEM)
