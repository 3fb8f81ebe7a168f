"""VGG networks in their CIFAR form, and the VGG-Small of the binary networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pabzip.models.binary import OnlyBinary, RealReLU
from pabzip.models.resnet import conv
from pabzip.registry import register_network


@register_network(
    "vgg11",
    options={"width": 64},
    variants={"conv_bias": False},
    least={"image_size": 32},
    depths=(1, 1, 2, 2, 2),
)
@register_network(
    "vgg13",
    options={"width": 64},
    variants={"conv_bias": False},
    least={"image_size": 32},
    depths=(2, 2, 2, 2, 2),
)
@register_network(
    "vgg16",
    options={"width": 64},
    variants={"conv_bias": False},
    least={"image_size": 32},
    depths=(2, 2, 3, 3, 3),
)
@register_network(
    "vgg19",
    options={"width": 64},
    variants={"conv_bias": False},
    least={"image_size": 32},
    depths=(2, 2, 4, 4, 4),
)
@register_network(
    "vgg-small",
    options={"width": 128},
    variants={"published": False},
    least={"image_size": 8},
    depths=(2, 2, 2),
    growth=4,
)
class VGG(nn.Module):
    """Stages of 3x3 convolutions with batch norm and ReLU, a 2x2 max pool each, one Linear ``fc``.

    Stage ``i`` has ``width * min(2**i, growth)`` channels. Input
    ``float[N, in_channels, image_size, image_size]``, output ``float[N, num_classes]`` (logits).

    Args:
        depths: convolutions of each stage.
        growth: the widest stage has ``growth * width`` channels.
        num_classes: number of logits.
        in_channels: channels of the input.
        image_size: height and width of the input in pixels, at least ``2**len(depths)``; ``fc``
            depends on it. Every pool drops an odd row and column.
        width: channels of the first stage.
        conv_bias: give the convolutions a bias, which batch norm undoes, as Peek-a-Boo's code does.
        published: the stages of the code of Multi-Prize Tickets, see `published_stages`; ``fc`` has
            no bias there (``bias=false``).

    Source: Simonyan & Zisserman 2015, Table 1, columns A, B, D and E (VGG-11, 13, 16, 19: width 64,
    growth 8), with batch norm, and with one Linear layer in place of three, the common form on
    CIFAR. VGG-Small (depths 2, 2, 2; width 128, growth 4) is the network of Zhang et al. 2018
    (LQ-Nets), Section 5, after Courbariaux et al. 2016. Rare Gems has VGG-16 with ``affine=false
    bias=false``. With binary activations the last one stays ReLU, as in ``VGG_Small_BinAct`` and
    ``VGG_Small_bn_BinAct`` of Multi-Prize Tickets; the second of these is VGG-Small without
    ``published``, ``affine=false bias=false binary_activations=true``.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int],
        growth: int = 8,
        num_classes: int,
        in_channels: int,
        image_size: int,
        width: int,
        conv_bias: bool = False,
        published: bool = False,
    ):
        super().__init__()
        widths = [width * min(2**stage, growth) for stage in range(len(depths))]
        self.features, inputs = conv_stages(
            in_channels, image_size, widths, depths, conv_bias=conv_bias
        )
        self.features[-2] = RealReLU()
        if published:
            self.features = published_stages(in_channels, widths)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits ``float[N, num_classes]``."""
        logits: torch.Tensor = self.fc(self.features(images).flatten(1))
        return logits


def conv_stages(
    inputs: int,
    image_size: int,
    widths: Sequence[int],
    depths: Sequence[int],
    *,
    batch_norm: bool = True,
    conv_bias: bool = False,
) -> tuple[nn.Sequential, int]:
    """Return stages of 3x3 convolutions with ReLU, a 2x2 max pool each, and the values they leave.

    With ``batch_norm`` every convolution is followed by batch norm, and has a bias of its own only
    with ``conv_bias``.
    """
    layers: list[nn.Module] = []
    for outputs, depth in zip(widths, depths, strict=True):
        for _ in range(depth):
            bias = conv_bias or not batch_norm
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias))
            if batch_norm:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.ReLU())
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers), inputs * (image_size // 2 ** len(depths)) ** 2


def published_stages(inputs: int, widths: Sequence[int]) -> nn.Sequential:
    """Return the stages of VGG-Small as the code of Multi-Prize Tickets has them.

    A stage is convolution, convolution, 2x2 max pool, batch norm. There are ReLUs after the first
    convolution and at the end alone, max pools being the other activations. With binary activations
    signs stand after the first convolution of a stage and between stages, and the last ReLU stays.

    Source: ``VGG_Small`` and ``VGG_Small_BinAct`` in ``models/frankle.py`` of chrundle/biprop.
    """
    layers: list[nn.Module] = []
    for stage, outputs in enumerate(widths):
        layers += [conv(inputs, outputs, 3, 1), nn.ReLU() if stage == 0 else OnlyBinary()]
        layers += [conv(outputs, outputs, 3, 1), nn.MaxPool2d(2), nn.BatchNorm2d(outputs)]
        layers.append(RealReLU() if stage == len(widths) - 1 else OnlyBinary())
        inputs = outputs
    return nn.Sequential(*layers)
