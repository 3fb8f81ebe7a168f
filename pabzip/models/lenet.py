"""LeNet-300-100: a network of Linear layers alone."""

from __future__ import annotations

import torch
from torch import nn


class LeNet300100(nn.Module):
    """Three Linear layers, ``inputs -> width -> width // 3 -> classes``, ReLU between them.

    Input ``float[N, in_channels, image_size, image_size]``, output ``float[N, num_classes]``
    (logits). With the default width of 300 the hidden layers have 300 and 100 units.

    Args:
        num_classes: number of logits.
        in_channels: channels of the input.
        image_size: height and width of the input in pixels; the first layer depends on it.
        width: units of the first hidden layer, at least 3.
        device: where the parameters are made.

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
        device: torch.device | str | None = None,
    ):
        super().__init__()
        inputs, second = in_channels * image_size**2, width // 3
        self.fc1 = nn.Linear(inputs, width, device=device, dtype=torch.float32)
        self.fc2 = nn.Linear(width, second, device=device, dtype=torch.float32)
        self.fc3 = nn.Linear(second, num_classes, device=device, dtype=torch.float32)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits ``float[N, num_classes]``."""
        hidden = torch.relu(self.fc1(images.flatten(1)))
        hidden = torch.relu(self.fc2(hidden))
        logits: torch.Tensor = self.fc3(hidden)
        return logits
