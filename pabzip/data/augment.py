"""Random changes to training images, as plain tensor operations on a batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

_PADDING = 4


def crop_and_flip(images: torch.Tensor, words: npt.NDArray[np.uint32]) -> torch.Tensor:
    """Shift every image by up to 4 pixels each way and mirror half of them.

    Equals padding with 4 black pixels on each side, a random crop of the old size, and a
    horizontal flip with probability 1/2.

    Args:
        images: ``[N, C, H, W]`` of any dtype, on any device; left as they are.
        words: ``uint32[N]``, a uniform 31-bit integer for each image.

    Returns:
        A new tensor of the shape, dtype and device of ``images``.

    Source: He et al. 2016, Section 4.2.
    """
    count, channels, height, width = images.shape
    offsets = 2 * _PADDING + 1
    choice = torch.from_numpy(words.astype(np.int64)).to(images.device)
    top = choice % offsets
    left = choice // offsets % offsets
    flip = (choice // offsets**2 % 2).bool()

    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(count, width)
    columns = left[:, None] + torch.where(flip[:, None], columns.flip(1), columns)
    padded = F.pad(images, (_PADDING,) * 4)
    which = torch.arange(count, device=images.device)
    return padded[
        which[:, None, None, None],
        torch.arange(channels, device=images.device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
