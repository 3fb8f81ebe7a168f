"""Labelled images in memory, and a dataset's two parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Augmentation = Callable[[torch.Tensor, npt.NDArray[np.uint32]], torch.Tensor]
"""Changes a batch ``uint8[N, C, H, W]`` at random; the second argument holds one uniform 31-bit
integer an image, the only randomness it may use."""


@dataclass(frozen=True, eq=False)
class Images:
    """Images with their labels, and the constants that turn pixels into network inputs.

    Attributes:
        images: ``uint8[N, C, H, W]``, values 0 to ``peak``.
        labels: ``int64[N]``, values 0 to number of classes less one.
        peak: the pixel value of full intensity.
        mean: mean of each channel of the training images, after division by ``peak``.
        std: standard deviation of each channel, likewise.
    """

    images: torch.Tensor
    labels: torch.Tensor
    peak: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return ``(pixels / peak - mean) / std`` by channel.

        Args:
            pixels: ``uint8[N, C, H, W]`` on any device.

        Returns:
            ``float32[N, C, H, W]`` on the same device.
        """
        shape = (1, len(self.mean), 1, 1)
        mean = torch.tensor(self.mean, dtype=torch.float32, device=pixels.device).view(shape)
        std = torch.tensor(self.std, dtype=torch.float32, device=pixels.device).view(shape)
        return (pixels.to(torch.float32) / self.peak - mean) / std

    def inputs(self) -> torch.Tensor:
        """Return all images, normalised: ``float32[N, C, H, W]``."""
        return self.normalise(self.images)


@dataclass(frozen=True, eq=False)
class Splits:
    """A dataset: its training and its test images.

    Attributes:
        name: as given to `pabzip.data.load`.
        train: images to learn from.
        test: images to measure on.
        num_classes: number of labels.
        augmentation: what the training images are put through where the field does so (random
            crop and flip for CIFAR), else None. `pabzip.data.batches` applies it on request.
    """

    name: str
    train: Images
    test: Images
    num_classes: int
    augmentation: Augmentation | None = None

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return int(self.train.images.shape[1])

    @property
    def image_size(self) -> int:
        """Height and width of an image in pixels."""
        return int(self.train.images.shape[2])

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel of the training images, scaled to [0, 1]."""
        return self.train.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel of the training images, scaled to [0, 1]."""
        return self.train.std
