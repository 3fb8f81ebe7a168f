"""Batches in a fixed or reproducibly random order."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from pabzip.data.augment import RandomResizedCrop
from pabzip.data.image_files import ImageFiles
from pabzip.data.order import augmentation_stream, order_stream, permutation, random_words
from pabzip.data.splits import AnyAugmentation, AnyImages, Normalization

Batch = tuple[torch.Tensor, torch.Tensor]


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
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
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
    if isinstance(images, ImageFiles):
        if augmentation is not None and not isinstance(augmentation, RandomResizedCrop):
            raise TypeError(
                "batches: expected a RandomResizedCrop for images in files, "
                f"found the augmentation {augmentation!r}"
            )
        walk = images.read(order, bounds, augmentation, words, where)
    elif isinstance(augmentation, RandomResizedCrop):
        raise TypeError(
            "batches: expected an augmentation of whole batches for images in memory, "
            f"found {augmentation!r}"
        )
    else:
        walk = images.read(order, bounds, augmentation, words, where)
    return _normalized(images, walk, where)


def _normalized(images: AnyImages, walk: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Normalize batch after batch; apart, so that bad arguments of `batches` fail at the call."""
    normalize = Normalization(images.mean, images.std, images.peak, device)
    for pixels, labels in walk:
        yield normalize(pixels), labels
