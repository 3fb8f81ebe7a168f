"""One pass over the training images."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from pabzip.data import AnyAugmentation, AnyImages, batches
from pabzip.train.gradients import BatchGradients
from pabzip.train.meter import Meter
from pabzip.train.optimisers import Optimisers


def steps_of(samples: int, batch_size: int, shards: int = 1) -> int:
    """Return the number of steps in an epoch.

    Every image is used once, but for a last batch that has not two images for each shard: batch
    norm could not normalise a single one.
    """
    steps, rest = divmod(samples, batch_size)
    if steps and rest < min(2 * shards, batch_size):
        return steps
    return steps + (1 if rest else 0)


def train_epoch(
    net: nn.Module,
    images: AnyImages,
    optimisers: Optimisers,
    gradients: BatchGradients,
    meter: Meter,
    *,
    epoch: int,
    seed: int,
    batch_size: int,
    steps: int,
    augmentation: AnyAugmentation | None,
    on_step: Callable[[int], None],
    done: int = 0,
) -> None:
    """Take one step for each batch, in an order that ``seed`` and ``epoch`` decide.

    Sums stay on the device, in ``meter``; ``on_step`` reads them when it cares to, and a loss that
    is not finite is noticed then.

    Args:
        net: the network, put into training mode.
        images: the training images, on the network's device.
        optimisers: take the steps; their schedules are the caller's.
        gradients: computes a batch's gradient.
        meter: counts.
        epoch: counted from 1.
        seed: decides order and augmentation.
        batch_size: images a step.
        steps: how many to take, `steps_of`.
        augmentation: what the images are put through, or None.
        on_step: told the number of each step that is done, from 1.
        done: steps that were taken before; the epoch continues after them.

    Raises:
        TrainingError: whatever ``on_step`` finds.
    """
    net.train()
    walk = batches(
        images, batch_size, shuffle_seed=seed, epoch=epoch - 1, augmentation=augmentation,
        start=done,
    )  # fmt: skip
    for step, (inputs, labels) in zip(range(done + 1, steps + 1), walk, strict=False):
        optimisers.zero_grad()
        batch = gradients(inputs, labels, epoch, step)
        meter.check(step, batch.loss, [p.grad for p in net.parameters() if p.grad is not None])
        optimisers.step()
        meter.add(batch.loss, batch.correct, batch.samples, optimisers.flips)
        on_step(step)
