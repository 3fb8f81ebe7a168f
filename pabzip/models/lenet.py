"""LeNet-300-100 and Conv-2/4/6/8, the small networks of the lottery ticket papers."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from pabzip.models.vgg import conv_stages
from pabzip.registry import register_network


class ThreeLinear(nn.Module):
    """Three Linear layers ``fc1``, ``fc2``, ``fc3``, ReLU between them, behind a feature extractor.

    Args:
        features: what the images go through first.
        sizes: units that come out of it, of both hidden layers, and of the output.
    """

    def __init__(self, features: nn.Module, *sizes: int):
        super().__init__()
        self.features = features
        self.fc1, self.fc2, self.fc3 = (nn.Linear(*pair) for pair in pairwise(sizes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits ``float[N, num_classes]``."""
        hidden = torch.relu(self.fc1(self.features(images).flatten(1)))
        logits: torch.Tensor = self.fc3(torch.relu(self.fc2(hidden)))
        return logits


@register_network("lenet-300-100", options={"width": 300}, least={"width": 3})
class LeNet300100(ThreeLinear):
    """Three Linear layers, ``inputs -> width -> width // 3 -> classes``, ReLU between them.

    Input ``float[N, in_channels, image_size, image_size]``, output ``float[N, num_classes]``
    (logits). With the default width of 300 the hidden layers have 300 and 100 units.

    Args:
        num_classes: number of logits.
        in_channels: channels of the input.
        image_size: height and width of the input in pixels; the first layer depends on it.
        width: units of the first hidden layer, at least 3.

    Source: LeCun et al. 1998, Section III.C.3; Frankle & Carbin 2019, Figure 2. Both have one
    channel of 28 pixels; here ``in_channels`` and ``image_size`` say.
    """

    def __init__(self, *, num_classes: int, in_channels: int, image_size: int, width: int):
        inputs = in_channels * image_size**2
        super().__init__(nn.Identity(), inputs, width, width // 3, num_classes)


@register_network(
    "conv2", options={"width": 64, "batch_norm": True}, least={"image_size": 2}, blocks=1
)
@register_network(
    "conv4", options={"width": 64, "batch_norm": True}, least={"image_size": 4}, blocks=2
)
@register_network(
    "conv6", options={"width": 64, "batch_norm": True}, least={"image_size": 8}, blocks=3
)
@register_network(
    "conv8", options={"width": 64, "batch_norm": True}, least={"image_size": 16}, blocks=4
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

    Source: Frankle & Carbin 2019, Figure 2 (Conv-2, Conv-4, Conv-6); Ramanujan et al. 2020,
    Section 4.1 (Conv-8, and width as a factor on all layers but the last). ``batch_norm`` follows
    Peek-a-Boo, footnote 2, which adds it to Conv-4 and Conv-6 to stabilize the training. Ramanujan
    et al. leave out all biases; Linear layers keep theirs here, as in Frankle & Carbin.
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
    ):
        widths = [width * 2**block for block in range(blocks)]
        features, inputs = conv_stages(
            in_channels, image_size, widths, [2] * blocks, batch_norm=batch_norm
        )
        super().__init__(features, inputs, 4 * width, 4 * width, num_classes)
