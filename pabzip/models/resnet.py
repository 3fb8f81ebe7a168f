"""Residual networks: in their CIFAR form, with a 3x3 stem, and torchvision's for ImageNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from pabzip._optional import torchvision_part
from pabzip.registry import register_network


class ResidualBlock(nn.Module):
    """Two or three convolutions with batch norm, and a shortcut around them.

    ``float[N, inputs, H, W] -> float[N, outputs, ceil(H / stride), ceil(W / stride)]``.

    Args:
        inputs: channels that come in.
        channels: of the convolutions; ``outputs`` are as many, or four times as many.
        stride: stride of the first 3x3 convolution and of the shortcut.
        bottleneck: a 1x1, a 3x3 and a widening 1x1 convolution, not two of 3x3.

    Source: He et al. 2016, Figure 5. The shortcut is the identity where the shape stays, else a
    1x1 convolution with batch norm (their option B). The stride of a bottleneck sits on its 3x3
    convolution, as in torchvision and in the common CIFAR form, not on the first 1x1 as there.
    """

    def __init__(self, inputs: int, channels: int, stride: int, *, bottleneck: bool):
        super().__init__()
        outputs = 4 * channels if bottleneck else channels
        first, second = ((1, 1), (3, stride)) if bottleneck else ((3, stride), (3, 1))
        self.conv1 = conv(inputs, channels, *first)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, *second)
        self.bn2 = nn.BatchNorm2d(channels)
        self.bottleneck = bottleneck
        if bottleneck:
            self.conv3 = conv(channels, outputs, 1, 1)
            self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        hidden = torch.relu(self.bn1(self.conv1(inputs)))
        hidden = self.bn2(self.conv2(hidden))
        if self.bottleneck:
            hidden = self.bn3(self.conv3(torch.relu(hidden)))
        return torch.relu(hidden + self.shortcut(inputs))


@register_network("resnet18", options={"width": 64}, depths=(2, 2, 2, 2))
@register_network("resnet20", options={"width": 16}, depths=(3, 3, 3))
@register_network("resnet34", options={"width": 64}, depths=(3, 4, 6, 3))
@register_network("resnet50", options={"width": 64}, depths=(3, 4, 6, 3), bottleneck=True)
class ResNet(nn.Module):
    """A 3x3 stem, stages of residual blocks, global average pooling, one Linear layer ``fc``.

    Stage ``i`` has base width ``width * 2**i``; every stage but the first halves height and width.
    Input ``float[N, in_channels, H, W]`` of any size, output ``float[N, num_classes]`` (logits).

    Args:
        depths: blocks in each stage.
        bottleneck: of the blocks, see `ResidualBlock`.
        num_classes: number of logits.
        in_channels: channels of the input.
        image_size: of the images that the network is made for; nothing depends on it.
        width: base width of the first stage.

    Source: He et al. 2016. Depths (2, 2, 2, 2), (3, 4, 6, 3) and width 64 are Table 1 with the
    ImageNet stem (7x7, stride 2, max pool) replaced by a 3x3 convolution of stride 1, the common
    form on CIFAR. Depths (3, 3, 3) and width 16 are Section 4.2's ResNet-20, which pads its
    shortcuts with zeros (option A); here they are 1x1 convolutions (option B), so that every
    residual network follows one rule. That adds 2,560 weights at width 16.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int],
        bottleneck: bool = False,
        num_classes: int,
        in_channels: int,
        image_size: int,
        width: int,
    ):
        super().__init__()
        self.conv1 = conv(in_channels, width, 3, 1)
        self.bn1 = nn.BatchNorm2d(width)
        block = partial(ResidualBlock, bottleneck=bottleneck)
        self.stages, outputs = residual_stages(block, width, width, depths, 4 if bottleneck else 1)
        self.fc = nn.Linear(outputs, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits ``float[N, num_classes]``."""
        hidden = torch.relu(self.bn1(self.conv1(images)))
        hidden = self.stages(hidden).mean(dim=(2, 3))
        logits: torch.Tensor = self.fc(hidden)
        return logits


def conv(inputs: int, outputs: int, size: int, stride: int, *, groups: int = 1) -> nn.Conv2d:
    """Return a convolution without bias, padded so that stride 1 keeps height and width."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


def residual_stages(
    block: Callable[[int, int, int], nn.Module],
    inputs: int,
    width: int,
    depths: Sequence[int],
    expansion: int = 1,
) -> tuple[nn.Sequential, int]:
    """Return stages of residual blocks, and the channels that come out of the last.

    Stage ``i`` has base width ``width * 2**i``, of which its blocks put out ``expansion`` times as
    many channels. The first block of every stage but the first has stride 2.
    """
    stages: list[nn.Module] = []
    for stage, depth in enumerate(depths):
        channels = width * 2**stage
        blocks: list[nn.Module] = []
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            blocks.append(block(inputs, channels, stride))
            inputs = channels * expansion
        stages.append(nn.Sequential(*blocks))
    return nn.Sequential(*stages), inputs


@register_network(
    "resnet18-imagenet", options={"num_classes": 1000, "image_size": 224}, constructor="resnet18"
)
@register_network(
    "resnet34-imagenet", options={"num_classes": 1000, "image_size": 224}, constructor="resnet34"
)
@register_network(
    "resnet50-imagenet", options={"num_classes": 1000, "image_size": 224}, constructor="resnet50"
)
@register_network(
    "wideresnet50-imagenet",
    options={"num_classes": 1000, "image_size": 224},
    constructor="wide_resnet50_2",
)
def imagenet_resnet(
    *, constructor: str, num_classes: int, in_channels: int, image_size: int
) -> nn.Module:
    """Return a residual network of torchvision without its weights, initialized by its own rules.

    Input ``float[N, in_channels, H, W]`` of any size, output ``float[N, num_classes]`` (logits).
    Parameters have torchvision's names, so its checkpoints fit.

    Args:
        constructor: function of ``torchvision.models``, such as ``"resnet50"``.
        num_classes: number of logits.
        in_channels: channels of the input; for other than 3 the first convolution is replaced, and
            drawn as torchvision draws its own.
        image_size: of the images that the network is made for; nothing depends on it.

    Raises:
        MissingDependencyError: torchvision is missing or does not match torch.

    Source: He et al. 2016, Table 1, with the stride of a bottleneck on its 3x3 convolution;
    Zagoruyko & Komodakis 2016, Section 3 (WideResNet-50-2: bottlenecks of twice the inner width).
    """
    with torch.device("cpu"):  # what torchvision makes when it is imported is not the network's
        models = torchvision_part("models", purpose=f"architecture {constructor}")
    net: nn.Module = getattr(models, constructor)(weights=None, num_classes=num_classes)
    stem = net.conv1
    assert isinstance(stem, nn.Conv2d)
    if in_channels != stem.in_channels:
        net.conv1 = nn.Conv2d(in_channels, stem.out_channels, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    return net
