"""Residual networks: in their CIFAR form, with a 3x3 stem, and torchvision's for ImageNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
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
        padded_shortcut: where the shape changes, the shortcut takes every second pixel and pads
            the channels with zeros on both sides (He et al.'s option A).
        norm_after_sum: the last batch norm stands after the sum with the shortcut.

    Source: He et al. 2016, Figure 5. The shortcut is the identity where the shape stays, else a
    1x1 convolution with batch norm (their option B). The stride of a bottleneck sits on its 3x3
    convolution, as in torchvision and in the common CIFAR form, not on the first 1x1 as there.
    ``norm_after_sum`` is the second form in the code of Multi-Prize Tickets
    (``resnet_cifar_BinAct_v2``).
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        stride: int,
        *,
        bottleneck: bool,
        padded_shortcut: bool,
        norm_after_sum: bool,
    ):
        super().__init__()
        outputs = 4 * channels if bottleneck else channels
        first, second = ((1, 1), (3, stride)) if bottleneck else ((3, stride), (3, 1))
        self.conv1 = conv(inputs, channels, *first)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, *second)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.bottleneck, self.norm_after_sum = bottleneck, norm_after_sum
        if bottleneck:
            self.conv3 = conv(channels, outputs, 1, 1)
            self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if (stride != 1 or inputs != outputs) and padded_shortcut:
            self.shortcut = PaddedShortcut(outputs, stride)
        elif stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        hidden = self.conv2(self.relu(self.bn1(self.conv1(inputs))))
        last = self.bn2
        if self.bottleneck:
            hidden, last = self.conv3(self.relu(self.bn2(hidden))), self.bn3
        if self.norm_after_sum:
            hidden = last(hidden + self.shortcut(inputs))
        else:
            hidden = last(hidden) + self.shortcut(inputs)
        outputs: torch.Tensor = self.relu(hidden)
        return outputs


class PaddedShortcut(nn.Module):
    """Every ``stride``-th pixel, and zeros for the channels that are missing, half on either side.

    ``float[N, inputs, H, W] -> float[N, outputs, ceil(H / stride), ceil(W / stride)]``.

    Source: He et al. 2016, Section 3.3, option A.
    """

    def __init__(self, outputs: int, stride: int):
        super().__init__()
        self.outputs, self.stride = outputs, stride

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the pixels that stay, with more channels."""
        missing = self.outputs - inputs.shape[1]
        pixels = inputs[:, :, :: self.stride, :: self.stride]
        return F.pad(pixels, (0, 0, 0, 0, missing // 2, missing - missing // 2))


@register_network(
    "resnet18",
    options={"width": 64},
    variants={"padded_shortcuts": False, "norm_after_sum": False},
    depths=(2, 2, 2, 2),
)
@register_network(
    "resnet20",
    options={"width": 16},
    variants={"padded_shortcuts": False, "norm_after_sum": False},
    depths=(3, 3, 3),
)
@register_network(
    "resnet34",
    options={"width": 64},
    variants={"padded_shortcuts": False, "norm_after_sum": False},
    depths=(3, 4, 6, 3),
)
@register_network(
    "resnet50",
    options={"width": 64},
    variants={"padded_shortcuts": False, "norm_after_sum": False},
    depths=(3, 4, 6, 3),
    bottleneck=True,
)
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
        padded_shortcuts, norm_after_sum: of the blocks, see `ResidualBlock`.

    Source: He et al. 2016. Depths (2, 2, 2, 2), (3, 4, 6, 3) and width 64 are Table 1 with the
    ImageNet stem (7x7, stride 2, max pool) replaced by a 3x3 convolution of stride 1, the common
    form on CIFAR. Depths (3, 3, 3) and width 16 are Section 4.2's ResNet-20, which pads its
    shortcuts with zeros (``padded_shortcuts``, as Rare Gems does); by default they are 1x1
    convolutions, as in Multi-Prize Tickets. That adds 2,560 weights at width 16. Rare Gems has
    ``affine=false bias=false`` besides.
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
        padded_shortcuts: bool,
        norm_after_sum: bool,
    ):
        super().__init__()
        self.conv1 = conv(in_channels, width, 3, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        block = partial(
            ResidualBlock,
            bottleneck=bottleneck,
            padded_shortcut=padded_shortcuts,
            norm_after_sum=norm_after_sum,
        )
        self.stages, outputs = residual_stages(block, width, width, depths, 4 if bottleneck else 1)
        self.fc = nn.Linear(outputs, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits ``float[N, num_classes]``."""
        hidden = self.relu(self.bn1(self.conv1(images)))
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
