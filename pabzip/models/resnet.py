"""Residual networks in their CIFAR form: a 3x3 stem without pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

Device = torch.device | str | None


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut around them.

    ``float[N, inputs, H, W] -> float[N, channels, ceil(H / stride), ceil(W / stride)]``.

    Args:
        inputs: channels that come in.
        channels: channels of both convolutions and of the output.
        stride: stride of the first convolution and of the shortcut.
        device: where the parameters are made.

    Source: He et al. 2016, Figure 5 (left). The shortcut is the identity where the shape stays,
    else a 1x1 convolution with batch norm (their option B).
    """

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int, device: Device = None):
        super().__init__()
        self.conv1 = conv(inputs, channels, 3, stride, device)
        self.bn1 = norm(channels, device)
        self.conv2 = conv(channels, channels, 3, 1, device)
        self.bn2 = norm(channels, device)
        self.shortcut = _shortcut(inputs, channels, stride, device)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        hidden = torch.relu(self.bn1(self.conv1(inputs)))
        hidden = self.bn2(self.conv2(hidden))
        return torch.relu(hidden + self.shortcut(inputs))


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a widening 1x1 convolution with batch norm, and a shortcut around them.

    ``float[N, inputs, H, W] -> float[N, 4 * channels, ceil(H / stride), ceil(W / stride)]``.

    Args:
        inputs: channels that come in.
        channels: channels of the first two convolutions.
        stride: stride of the 3x3 convolution and of the shortcut.
        device: where the parameters are made.

    Source: He et al. 2016, Figure 5 (right). The stride sits on the 3x3 convolution, as in
    torchvision and in the common CIFAR form, not on the first 1x1 as in the paper.
    """

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int, device: Device = None):
        super().__init__()
        outputs = self.expansion * channels
        self.conv1 = conv(inputs, channels, 1, 1, device)
        self.bn1 = norm(channels, device)
        self.conv2 = conv(channels, channels, 3, stride, device)
        self.bn2 = norm(channels, device)
        self.conv3 = conv(channels, outputs, 1, 1, device)
        self.bn3 = norm(outputs, device)
        self.shortcut = _shortcut(inputs, outputs, stride, device)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        hidden = torch.relu(self.bn1(self.conv1(inputs)))
        hidden = torch.relu(self.bn2(self.conv2(hidden)))
        hidden = self.bn3(self.conv3(hidden))
        return torch.relu(hidden + self.shortcut(inputs))


class ResNet(nn.Module):
    """A 3x3 stem, stages of residual blocks, global average pooling, one Linear layer ``fc``.

    Stage ``i`` has base width ``width * 2**i``; every stage but the first halves height and width.
    Input ``float[N, in_channels, H, W]`` of any size, output ``float[N, num_classes]`` (logits).

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: blocks in each stage.
        num_classes: number of logits.
        in_channels: channels of the input.
        width: base width of the first stage.
        device: where the parameters are made.

    Source: He et al. 2016. Depths (2, 2, 2, 2), (3, 4, 6, 3) and width 64 are Table 1 with the
    ImageNet stem (7x7, stride 2, max pool) replaced by a 3x3 convolution of stride 1, the common
    form on CIFAR. Depths (3, 3, 3) and width 16 are Section 4.2's ResNet-20, which pads its
    shortcuts with zeros (option A); here they are 1x1 convolutions (option B), so that every
    residual network follows one rule. That adds 2,560 weights at width 16.
    """

    def __init__(
        self,
        *,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        num_classes: int,
        in_channels: int,
        width: int,
        device: Device = None,
    ):
        super().__init__()
        self.conv1 = conv(in_channels, width, 3, 1, device)
        self.bn1 = norm(width, device)
        stages: list[nn.Module] = []
        inputs = width
        for stage, depth in enumerate(depths):
            channels = width * 2**stage
            blocks: list[nn.Module] = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(inputs, channels, stride, device))
                inputs = channels * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(inputs, num_classes, device=device, dtype=torch.float32)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits ``float[N, num_classes]``."""
        hidden = torch.relu(self.bn1(self.conv1(images)))
        hidden = self.stages(hidden).mean(dim=(2, 3))
        logits: torch.Tensor = self.fc(hidden)
        return logits


def conv(
    inputs: int, outputs: int, size: int, stride: int, device: Device, *, groups: int = 1
) -> nn.Conv2d:
    """Return a convolution without bias, padded so that stride 1 keeps height and width."""
    return nn.Conv2d(
        inputs,
        outputs,
        size,
        stride=stride,
        padding=size // 2,
        groups=groups,
        bias=False,
        device=device,
        dtype=torch.float32,
    )


def norm(channels: int, device: Device) -> nn.BatchNorm2d:
    """Return batch norm with torch's defaults."""
    return nn.BatchNorm2d(channels, device=device, dtype=torch.float32)


def _shortcut(inputs: int, outputs: int, stride: int, device: Device) -> nn.Module:
    """Return the identity where the shape stays, else a 1x1 convolution with batch norm."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(conv(inputs, outputs, 1, stride, device), norm(outputs, device))
