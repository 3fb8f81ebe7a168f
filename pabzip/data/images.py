"""Images with labels, a dataset's training and test split, and batches in a reproducible order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from pabzip.data.augment import RandomResizedCrop
from pabzip.data.image_files import ImageFiles
from pabzip.data.order import (
    Words,
    augmentation_stream,
    order_stream,
    permutation,
    random_words,
)

Batch = tuple[torch.Tensor, torch.Tensor]
"""Pixels or inputs, and labels."""

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

    def take(self, places: NDArray[np.int64]) -> Images:
        """Return the images at some places, in that order."""
        chosen = torch.from_numpy(places).to(self.device)
        return dataclasses.replace(self, images=self.images[chosen], labels=self.labels[chosen])

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return ``(pixels / peak - mean) / std`` by channel.

        Args:
            pixels: ``uint8[N, C, H, W]`` on any device.

        Returns:
            ``float32[N, C, H, W]`` on the same device.
        """
        return _normalizer(self, pixels.device)(pixels)

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
    ) -> Iterator[Batch]:
        """Yield ``uint8[B, C, H, W]`` and ``int64[B]`` on ``device``; see `pabzip.data.batches`.

        ``bounds`` are the first place in ``order`` and one past the last, for each batch; ``words``
        is what the augmentation draws from, one word a place in ``order``. Order and random words
        cross to the device once a pass and not once a batch.
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
    """A dataset: its training and test images, and validation images if there are any.

    Attributes:
        name: as given to `pabzip.data.load`.
        train: images to learn from.
        test: images to measure on.
        num_classes: number of labels.
        augmentation: what the training images are put through where the field does so (random
            crop and flip for CIFAR), else None. `pabzip.data.batches` applies it on request.
        validation: images to choose settings by, which are not among ``train``, such as those of
            `hold_out`; None where there are none.
    """

    name: str
    train: AnyImages
    test: AnyImages
    num_classes: int
    augmentation: AnyAugmentation | None = None
    validation: AnyImages | None = None

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


def batches(
    images: AnyImages,
    batch_size: int,
    *,
    shuffle_seed: int | None = None,
    epoch: int = 0,
    augmentation: AnyAugmentation | None = None,
    device: torch.device | str | None = None,
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Yield normalized inputs and labels, every image once.

    Order and augmentation are functions of ``shuffle_seed`` and ``epoch`` alone: they are the same
    on every device and machine, are independent of ``batch_size`` and of the number of ranks, use
    and change no global random state, and any batch can be reached directly through ``start``.

    Args:
        images: the images, in memory on any device or in files.
        batch_size: images in a batch of all ranks together; the last batch may hold fewer.
        shuffle_seed: ``0 <= shuffle_seed < 2**64``. None keeps the stored order.
        epoch: selects the order and the augmentation, ``0 <= epoch < 2**30``.
        augmentation: applied to the pixels before they are normalized, such as
            `Splits.augmentation`; needs a ``shuffle_seed``.
        device: where the batches go; by default ``images.device``.
        start: number of batches to leave out at the front.
        shard: this process's rank and the number of ranks. A rank gets its own slice of every
            batch; the slices of all ranks in order are the whole batch. With fewer images in the
            last batch than ranks, some slices are empty.

    Yields:
        ``float32[B, C, H, W]`` and ``int64[B]`` on ``device``.

    Raises:
        ValueError: a batch size below 1, a negative start, an epoch out of range, a rank that is
            not one of the ranks, or an augmentation without a seed.
        TypeError: an augmentation for images in memory with images in files, or the reverse.
        SeedError: ``shuffle_seed`` out of range.
        DataError: on reading a file that is missing or damaged.
    """
    rank, ranks = shard
    if batch_size < 1 or start < 0:
        raise ValueError(
            f"batches: expected batch_size >= 1 and start >= 0, found {batch_size} and {start}"
        )
    if not 0 <= rank < ranks:
        raise ValueError(
            f"batches: expected a shard (rank, ranks) with 0 <= rank < ranks, found {shard}"
        )
    if augmentation is not None and shuffle_seed is None:
        raise ValueError("batches: augmentation needs a shuffle_seed to draw from")
    count = len(images)
    order, words = np.arange(count), None
    if shuffle_seed is not None:
        order = permutation(count, seed=shuffle_seed, stream=order_stream(epoch))
        words = partial(random_words, shuffle_seed, augmentation_stream(epoch))
    bounds = []
    for begin in range(start * batch_size, count, batch_size):
        size = min(batch_size, count - begin)
        bounds.append((begin + size * rank // ranks, begin + size * (rank + 1) // ranks))
    where = images.device if device is None else torch.device(device)
    in_files = isinstance(images, ImageFiles)
    if augmentation is not None and isinstance(augmentation, RandomResizedCrop) != in_files:
        expected = (
            "a RandomResizedCrop for images in files, found the augmentation"
            if in_files
            else "an augmentation of whole batches for images in memory, found"
        )
        raise TypeError(f"batches: expected {expected} {augmentation!r}")
    walk = images.read(order, bounds, cast(Any, augmentation), words, where)
    # A generator of its own, so that bad arguments fail at the call and not at the first batch.
    normalize = _normalizer(images, where)
    return ((normalize(pixels), labels) for pixels, labels in walk)


def _normalizer(images: AnyImages, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what normalizes pixels ``uint8[N, C, H, W]``; constants cross once."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        for values in (images.mean, images.std)
    )
    return lambda pixels: (pixels.to(torch.float32) / images.peak - mean) / std
