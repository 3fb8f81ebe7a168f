"""Images with labels, and a dataset's training and test split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pabzip.data.augment import RandomResizedCrop
from pabzip.data.image_files import ImageFiles
from pabzip.data.order import Words


class Normalization:
    """``(pixels / peak - mean) / std`` by channel; its constants are put on the device once.

    Args:
        mean: of each channel, after division by ``peak``.
        std: likewise.
        peak: the pixel value of full intensity.
        device: of the pixels.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], peak: int, device: torch.device
    ):
        def constants(values: Sequence[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)

        self._mean, self._std, self._peak = constants(mean), constants(std), peak

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return ``float32[N, C, H, W]`` from ``uint8[N, C, H, W]`` on the device."""
        return (pixels.to(torch.float32) / self._peak - self._mean) / self._std


Augmentation = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Changes a batch ``uint8[N, C, H, W]`` at random; the second argument, ``int64[N]`` on the same
device, holds one uniform 31-bit integer an image, the only randomness it may use."""


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

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.images.device

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Channels, height and width of an input."""
        return tuple(self.images.shape[1:])

    def to(self, device: torch.device | str) -> Images:
        """Return the same images on ``device``, so that no step waits for a copy."""
        return dataclasses.replace(
            self, images=self.images.to(device), labels=self.labels.to(device)
        )

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return ``(pixels / peak - mean) / std`` by channel.

        Args:
            pixels: ``uint8[N, C, H, W]`` on any device.

        Returns:
            ``float32[N, C, H, W]`` on the same device.
        """
        return Normalization(self.mean, self.std, self.peak, pixels.device)(pixels)

    def inputs(self) -> torch.Tensor:
        """Return all images, normalized: ``float32[N, C, H, W]``."""
        return self.normalize(self.images)

    def read(
        self,
        order: NDArray[np.int64],
        bounds: Sequence[tuple[int, int]],
        augmentation: Augmentation | None,
        words: Words | None,
        device: torch.device,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield pixels and labels for places of an order; see `pabzip.data.batches`.

        Order and random words cross to the device once a pass and not once a batch.

        Args:
            order: numbers of images.
            bounds: first place in ``order`` and one past the last, for each batch.
            augmentation: put over the pixels on ``device``, or None.
            words: what the augmentation draws from, one word a place in ``order``.
            device: where the batches go.

        Yields:
            ``uint8[B, C, H, W]`` and ``int64[B]``.
        """
        chosen = torch.from_numpy(order).to(self.device)
        drawn = None
        if augmentation is not None and words is not None:
            drawn = torch.from_numpy(words(0, len(order)).astype(np.int64)).to(device)
        for begin, end in bounds:
            pixels = self.images[chosen[begin:end]].to(device)
            if augmentation is not None and drawn is not None:
                pixels = augmentation(pixels, drawn[begin:end])
            yield pixels, self.labels[chosen[begin:end]].to(device)


AnyImages = Images | ImageFiles
"""Images in memory or in files: what `pabzip.data.batches` walks through."""

AnyAugmentation = Augmentation | RandomResizedCrop
"""What changes images at random: `Augmentation` for those in memory, `RandomResizedCrop` for those
in files."""


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
    train: AnyImages
    test: AnyImages
    num_classes: int
    augmentation: AnyAugmentation | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Channels, height and width of an input."""
        return self.train.input_shape

    @property
    def in_channels(self) -> int:
        """Channels of an input."""
        return self.input_shape[0]

    @property
    def image_size(self) -> int:
        """Height and width of an input in pixels."""
        return self.input_shape[1]

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel of the training images, scaled to [0, 1]."""
        return self.train.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel of the training images, scaled to [0, 1]."""
        return self.train.std
