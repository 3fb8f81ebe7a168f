"""Batches in a fixed or reproducibly random order."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pabzip.data.order import augmentation_stream, order_stream, permutation, random_words
from pabzip.data.splits import Augmentation, Images


def batches(
    images: Images,
    batch_size: int,
    *,
    shuffle_seed: int | None = None,
    epoch: int = 0,
    augmentation: Augmentation | None = None,
    device: torch.device | str = "cpu",
    start: int = 0,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield normalised inputs and labels, every image once.

    Order and augmentation are functions of ``shuffle_seed`` and ``epoch`` alone: they are the same
    on every device and machine, are independent of ``batch_size``, use and change no global random
    state, and any batch can be reached directly through ``start``.

    Args:
        images: the images, on any device.
        batch_size: images in a batch; the last batch may hold fewer.
        shuffle_seed: ``0 <= shuffle_seed < 2**64``. None keeps the stored order.
        epoch: selects the order and the augmentation, ``0 <= epoch < 2**30``.
        augmentation: applied to the pixels before they are normalised, such as
            `Splits.augmentation`; needs a ``shuffle_seed``.
        device: where the batches go.
        start: number of batches to leave out at the front.

    Yields:
        ``float32[B, C, H, W]`` and ``int64[B]`` on ``device``.

    Raises:
        ValueError: a batch size below 1, a negative start, an epoch out of range, or an
            augmentation without a seed.
        SeedError: ``shuffle_seed`` out of range.
    """
    if batch_size < 1 or start < 0:
        raise ValueError(
            f"batches: expected batch_size >= 1 and start >= 0, found {batch_size} and {start}"
        )
    count = len(images)
    if shuffle_seed is None:
        if augmentation is not None:
            raise ValueError("batches: augmentation needs a shuffle_seed to draw from")
        order = torch.arange(count)
    else:
        shuffled = permutation(count, seed=shuffle_seed, stream=order_stream(epoch))
        order = torch.from_numpy(shuffled)
    order = order.to(images.images.device)
    return _walk(images, order, batch_size, shuffle_seed, epoch, augmentation, device, start)


def _walk(
    images: Images,
    order: torch.Tensor,
    batch_size: int,
    shuffle_seed: int | None,
    epoch: int,
    augmentation: Augmentation | None,
    device: torch.device | str,
    start: int,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the batches; apart from `batches`, so that bad arguments fail at the call."""
    for begin in range(start * batch_size, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        pixels = images.images[chosen].to(device)
        if augmentation is not None and shuffle_seed is not None:
            words = random_words(
                shuffle_seed, augmentation_stream(epoch), begin, begin + len(chosen)
            )
            pixels = augmentation(pixels, words)
        yield images.normalise(pixels), images.labels[chosen].to(device)
