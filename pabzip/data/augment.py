"""Augmentation: random crops, flips and resized crops, as functions of seed and epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class RandomCrop:
    """Shifts every image by some pixels each way and, with ``mirror``, mirrors half of them.

    Equals padding with black pixels on each side, a random crop of the old size, and a horizontal
    flip with probability 1/2.

    Attributes:
        padding: largest shift in pixels, 0 or more.
        mirror: whether images are mirrored; never right for digits and letters.

    Source: He et al. 2016, Section 4.2 (4 pixels and mirrored, for images of 32x32).
    """

    padding: int
    mirror: bool

    def __call__(self, images: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Change a batch.

        Args:
            images: ``[N, C, H, W]`` of any dtype, on any device; left as they are.
            words: ``int64[N]`` on the same device, a uniform 31-bit integer for each image.

        Returns:
            A new tensor of the shape, dtype and device of ``images``.
        """
        count, channels, height, width = images.shape
        device = images.device
        offsets = 2 * self.padding + 1
        top = words % offsets
        left = words // offsets % offsets

        rows = top[:, None] + torch.arange(height, device=device)
        columns = torch.arange(width, device=device).expand(count, width)
        if self.mirror:
            flip = (words // offsets**2 % 2).bool()
            columns = torch.where(flip[:, None], columns.flip(1), columns)
        columns = left[:, None] + columns
        padded = F.pad(images, (self.padding,) * 4)
        which = torch.arange(count, device=device)
        return padded[
            which[:, None, None, None],
            torch.arange(channels, device=device)[None, :, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]


crop_and_flip = RandomCrop(padding=4, mirror=True)
"""The field's augmentation for CIFAR."""


_TRIES = 10
WORDS_PER_IMAGE = 2 * _TRIES + 3
"""Random words that one image takes: two a try, then top, left and mirror."""

_WORD = 2.0**31


@dataclass(frozen=True, slots=True)
class RandomResizedCrop:
    """Takes a random part of every image, resizes it, and mirrors it with probability 1/2.

    Ten times a part is drawn whose area and aspect ratio are uniform in their ranges (the ratio on
    a logarithmic scale); the first that fits is taken. If none fits, the largest part in the
    middle is, with an aspect ratio in its range. What to draw comes from pabzip's generator alone;
    the pixels come from torchvision's functions.

    Attributes:
        scale: least and greatest fraction of the image's area.
        ratio: least and greatest width over height.
        mirror: whether images are mirrored.

    Source: Szegedy et al. 2015, Section 6 (areas of 8 % to 100 %, ratios of 3/4 to 4/3); the
    tries and what follows them as in ``torchvision.transforms.v2.RandomResizedCrop``.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    mirror: bool = True

    def box(self, width: int, height: int, words: NDArray[np.uint32]) -> tuple[int, int, int, int]:
        """Return top, left, height and width of the part of an image, in pixels.

        ``words`` are ``uint32[WORDS_PER_IMAGE]``, uniform 31-bit integers.
        """
        drawn = [int(word) / _WORD for word in words]
        low, high = (math.log(value) for value in self.ratio)
        for attempt in range(_TRIES):
            least, most = self.scale
            area = width * height * (least + (most - least) * drawn[2 * attempt])
            aspect = math.exp(low + (high - low) * drawn[2 * attempt + 1])
            wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < wide <= width and 0 < tall <= height:
                top = int(drawn[2 * _TRIES] * (height - tall + 1))
                left = int(drawn[2 * _TRIES + 1] * (width - wide + 1))
                return top, left, tall, wide
        aspect = min(max(width / height, self.ratio[0]), self.ratio[1])
        wide, tall = min(width, round(height * aspect)), min(height, round(width / aspect))
        wide, tall = max(wide, 1), max(tall, 1)
        return (height - tall) // 2, (width - wide) // 2, tall, wide

    def __call__(self, image: Image, size: int, words: NDArray[np.uint32]) -> Image:
        """Return a random part of ``image``, ``size`` pixels high and wide.

        ``image`` may have any size; ``words`` are those of `box`.
        """
        from torchvision.transforms.v2 import functional

        top, left, tall, wide = self.box(image.width, image.height, words)
        part: Image = functional.resized_crop(image, top, left, tall, wide, [size, size])
        if self.mirror and int(words[-1]) & 1:
            part = functional.horizontal_flip(part)
        return part
