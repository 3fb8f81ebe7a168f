"""Wide residual networks: shallow and broad, with the activation before each convolution."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from pabzip.models.resnet import conv, residual_stages
from pabzip.registry import register_network


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, and a shortcut around them.

    ``float[N, inputs, H, W] -> float[N, channels, ceil(H / stride), ceil(W / stride)]``.

    Args:
        inputs: channels that come in.
        channels: channels of both convolutions and of the output.
        stride: stride of the shortcut and of one of the convolutions.
        late_stride: put it on the second convolution, not on the first.
        raw_shortcut: the shortcut takes the input before batch norm and ReLU.

    Source: Zagoruyko & Komodakis 2016, Figure 1 (c) and Section 2, and their code: where the shape
    changes, the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(
        self, inputs: int, channels: int, stride: int, *, late_stride: bool, raw_shortcut: bool
    ):
        super().__init__()
        self.relu, self.raw_shortcut = nn.ReLU(), raw_shortcut
        first, second = (1, stride) if late_stride else (stride, 1)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, channels, 3, first)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3, second)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or inputs != channels:
            self.shortcut = conv(inputs, channels, 1, stride)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        active = self.relu(self.bn1(inputs))
        hidden: torch.Tensor = self.conv2(self.relu(self.bn2(self.conv1(active))))
        if self.shortcut is None:
            return hidden + inputs
        shortcut: torch.Tensor = self.shortcut(inputs if self.raw_shortcut else active)
        return hidden + shortcut


@register_network(
    "wideresnet28",
    options={"width": 16, "widen": 10, "late_stride": False},
    variants={"published": False},
    depth=4,
)
class WideResNet(nn.Module):
    """A 3x3 stem, three stages of `WideBlock`, global average pooling, one Linear layer ``fc``.

    The stem has ``width`` channels, stage ``i`` has ``width * widen * 2**i``; the second and third
    stages halve height and width. Input ``float[N, in_channels, H, W]`` of any size, output
    ``float[N, num_classes]`` (logits).

    Args:
        depth: blocks of each stage; 4 for WideResNet-28.
        num_classes, in_channels, image_size: as for `pabzip.models.resnet.ResNet`.
        width: channels of the stem.
        widen: the paper's k; 2 for the WideResNet-28-2 of Rare Gems, who have ``affine=false
            bias=false`` besides.
        late_stride: halve in the second convolution of a stage's first block. The networks have
            the same weights then, but the first convolution works at twice the height and width:
            5.95 instead of 5.24 billion multiply-accumulates for WideResNet-28-10 on CIFAR.
        published: the network of Peek-a-Boo's code: ``late_stride``, shortcuts of the raw input,
            and a momentum of 0.9 in the last batch norm, whose running statistics then forget all
            but the last few batches.

    Source: Zagoruyko & Komodakis 2016, Table 1, without dropout. ``late_stride`` has the cost that
    Peek-a-Boo's Table 2 gives, ``published`` is its whole network.
    """

    def __init__(
        self,
        *,
        depth: int,
        num_classes: int,
        in_channels: int,
        image_size: int,
        width: int,
        widen: int,
        late_stride: bool,
        published: bool,
    ):
        super().__init__()
        self.relu = nn.ReLU()
        self.conv1 = conv(in_channels, width, 3, 1)
        block = partial(WideBlock, late_stride=late_stride or published, raw_shortcut=published)
        self.stages, outputs = residual_stages(block, width, width * widen, [depth] * 3)
        self.bn = nn.BatchNorm2d(outputs, momentum=0.9 if published else 0.1)
        self.fc = nn.Linear(outputs, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits ``float[N, num_classes]``."""
        hidden = self.stages(self.conv1(images))
        hidden = self.relu(self.bn(hidden)).mean(dim=(2, 3))
        logits: torch.Tensor = self.fc(hidden)
        return logits
