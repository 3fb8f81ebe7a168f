"""LeNet-300-100 and Conv-2/4/6/8, the small networks of the lottery ticket papers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pabzip.models.vgg import conv_stages
from pabzip.registry import register_network


class ThreeLinear(nn.Module):
    """Three Linear layers ``fc1``, ``fc2``, ``fc3``, ReLU between them, behind a feature extractor.

    Args:
        features: what the images go through first.
        sizes: units that come out of it, of both hidden layers, and of the output.
        batch_norm: put batch norm before each ReLU; the two layers then have no bias of their own.
    """

    def __init__(self, features: nn.Module, sizes: Sequence[int], *, batch_norm: bool):
        super().__init__()
        self.features = features
        inputs, first, second, outputs = sizes
        self.fc1 = nn.Linear(inputs, first, bias=not batch_norm)
        self.fc2 = nn.Linear(first, second, bias=not batch_norm)
        self.fc3 = nn.Linear(second, outputs)
        self.act1: nn.Module = nn.ReLU()
        self.act2: nn.Module = nn.ReLU()
        if batch_norm:
            self.act1 = nn.Sequential(nn.BatchNorm1d(first), self.act1)
            self.act2 = nn.Sequential(nn.BatchNorm1d(second), self.act2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits ``float[N, num_classes]``."""
        hidden = self.act1(self.fc1(self.features(images).flatten(1)))
        logits: torch.Tensor = self.fc3(self.act2(self.fc2(hidden)))
        return logits


@register_network(
    "lenet-300-100",
    options={"width": 300},
    variants={"head_batch_norm": False},
    binary_with={"head_batch_norm": True},
    least={"width": 3},
)
class LeNet300100(ThreeLinear):
    """Three Linear layers, ``inputs -> width -> width // 3 -> classes``, ReLU between them.

    Input ``float[N, in_channels, image_size, image_size]``, output ``float[N, num_classes]``
    (logits). With the default width of 300 the hidden layers have 300 and 100 units.

    Args:
        num_classes: number of logits.
        in_channels: channels of the input.
        image_size: height and width of the input in pixels; the first layer depends on it.
        width: units of the first hidden layer, at least 3.
        head_batch_norm: see `ThreeLinear`; binary activations need it.

    Source: LeCun et al. 1998, Section III.C.3; Frankle & Carbin 2019, Figure 2. Both have one
    channel of 28 pixels; here ``in_channels`` and ``image_size`` say.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int,
        width: int,
        head_batch_norm: bool,
    ):
        sizes = in_channels * image_size**2, width, width // 3, num_classes
        super().__init__(nn.Identity(), sizes, batch_norm=head_batch_norm)


@register_network(
    "conv2",
    options={"width": 64, "batch_norm": True},
    variants={"head_batch_norm": False},
    binary_with={"batch_norm": True, "head_batch_norm": True},
    least={"image_size": 2},
    blocks=1,
)
@register_network(
    "conv4",
    options={"width": 64, "batch_norm": True},
    variants={"head_batch_norm": False},
    binary_with={"batch_norm": True, "head_batch_norm": True},
    least={"image_size": 4},
    blocks=2,
)
@register_network(
    "conv6",
    options={"width": 64, "batch_norm": True},
    variants={"head_batch_norm": False},
    binary_with={"batch_norm": True, "head_batch_norm": True},
    least={"image_size": 8},
    blocks=3,
)
@register_network(
    "conv8",
    options={"width": 64, "batch_norm": True},
    variants={"head_batch_norm": False},
    binary_with={"batch_norm": True, "head_batch_norm": True},
    least={"image_size": 16},
    blocks=4,
)
class ConvNet(ThreeLinear):
    """Blocks of two 3x3 convolutions and a 2x2 max pool, then three Linear layers.

    Block ``i`` has ``width * 2**i`` channels; the two hidden Linear layers have ``4 * width``
    units. With the default width of 64 that is Conv-2 (one block) to Conv-8 (four blocks):
    64, 128, 256, 512 channels and 256 units.

    Input ``float[N, in_channels, image_size, image_size]``, output ``float[N, num_classes]``
    (logits).

    Args:
        blocks: number of blocks: 1 for Conv-2, 2 for Conv-4, 3 for Conv-6, 4 for Conv-8.
        num_classes: number of logits.
        in_channels: channels of the input.
        image_size: height and width of the input in pixels, at least ``2**blocks``; the first
            Linear layer depends on it. Every pool drops an odd row and column.
        width: channels of the first block.
        batch_norm: put batch norm after every convolution, whose own bias is then left out.
        head_batch_norm: put it after the two hidden Linear layers, too, see `ThreeLinear`; binary
            activations need both.

    Source: Frankle & Carbin 2019, Figure 2 (Conv-2, Conv-4, Conv-6); Ramanujan et al. 2020,
    Section 4.1 (Conv-8, and width as a factor on all layers but the last). ``batch_norm`` follows
    Peek-a-Boo, footnote 2, which adds it to Conv-4 and Conv-6 to stabilize the training; their code
    adds ``head_batch_norm=true bias=false``, its Linear layers being 1x1 convolutions. The code of
    Ramanujan et al., of Multi-Prize Tickets and of Rare Gems has ``batch_norm=false bias=false``,
    and that of Multi-Prize Tickets ``binary_activations=true affine=false bias=false`` for MPT-1/1.
    """

    def __init__(
        self,
        *,
        blocks: int,
        num_classes: int,
        in_channels: int,
        image_size: int,
        width: int,
        batch_norm: bool,
        head_batch_norm: bool,
    ):
        widths = [width * 2**block for block in range(blocks)]
        features, inputs = conv_stages(
            in_channels, image_size, widths, [2] * blocks, batch_norm=batch_norm
        )
        sizes = inputs, 4 * width, 4 * width, num_classes
        super().__init__(features, sizes, batch_norm=head_batch_norm)
