"""One pass over the training images."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import nn

from pabzip.data import Images, batches
from pabzip.data.splits import Augmentation
from pabzip.train.meter import Meter
from pabzip.train.observers import Progress
from pabzip.train.optimisers import Optimisers

_READ_EVERY = 20


def steps_of(samples: int, batch_size: int) -> int:
    """Return the number of steps in an epoch.

    Every image is used once, but for a last batch of a single image, which batch norm could not
    normalise.
    """
    lonely = samples > batch_size and samples % batch_size == 1
    return math.ceil(samples / batch_size) - (1 if lonely and batch_size > 1 else 0)


def train_epoch(
    net: nn.Module,
    images: Images,
    optimisers: Optimisers,
    *,
    epoch: int,
    seed: int,
    batch_size: int,
    augmentation: Augmentation | None,
    on_progress: Callable[[Progress], None],
) -> Progress:
    """Take one step for each batch, in an order that ``seed`` and ``epoch`` decide.

    Sums stay on the device and are read every 20 steps, which is when ``on_progress`` is called
    and when a loss that is not finite is noticed.

    Args:
        net: the network, put into training mode.
        images: the training images, on the network's device.
        optimisers: take the steps; their schedules are the caller's.
        epoch: counted from 1.
        seed: decides order and augmentation.
        batch_size: images a step.
        augmentation: what the images are put through, or None.
        on_progress: told the numbers of the epoch so far.

    Returns:
        The numbers of the whole epoch.

    Raises:
        TrainingError: a loss or gradient is not finite; names epoch and step.
    """
    device = images.images.device
    steps = steps_of(len(images), batch_size)
    meter = Meter(epoch, device)
    net.train()
    walk = batches(
        images, batch_size, shuffle_seed=seed, epoch=epoch - 1, augmentation=augmentation,
        device=device,
    )  # fmt: skip
    for step, (inputs, labels) in zip(range(1, steps + 1), walk, strict=False):
        optimisers.zero_grad()
        logits = net(inputs)
        loss = F.cross_entropy(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        meter.check(loss, [p.grad for p in net.parameters() if p.grad is not None])
        optimisers.step()
        meter.add(loss, logits, labels, optimisers.bop.flips)
        if step % _READ_EVERY == 0 and step < steps:
            on_progress(meter.read())
    last = meter.read()
    on_progress(last)
    return last
