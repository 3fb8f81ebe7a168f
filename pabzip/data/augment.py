"""Random changes to training images, as plain tensor operations on a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True, slots=True)
class RandomCrop:
    """Shift every image by some pixels each way and, if told to, mirror half of them.

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
