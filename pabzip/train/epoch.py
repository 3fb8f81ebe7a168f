"""One pass over the training images."""

from __future__ import annotations

from collections.abc import Callable

from pabzip.data import AnyAugmentation, AnyImages, batches
from pabzip.train.dropping import dropped
from pabzip.train.gradients import BatchGradients
from pabzip.train.recipes import Recipe
from pabzip.train.run_state import RunState


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
    state: RunState,
    images: AnyImages,
    gradients: BatchGradients,
    recipe: Recipe,
    *,
    steps: int,
    ranks: tuple[int, int],
    augmentation: AnyAugmentation | None,
    on_step: Callable[[int], None],
) -> None:
    """Take one step for each batch that is left of the epoch.

    Order, augmentation and which steps are dropped are decided by seed and epoch. Sums stay on the
    device, in the meter; ``on_step`` reads them when it cares to, and a loss that is not finite is
    noticed then.

    Args:
        state: the run's; its network is put into training mode, its optimisers take the steps.
        images: the training images.
        gradients: computes a batch's gradient.
        recipe: ``seed``, ``batch_size`` and ``drop_ratio`` matter.
        steps: of the whole epoch, `steps_of`.
        ranks: this process's rank and how many there are: it sees its part of every batch.
        augmentation: what the images are put through, or None.
        on_step: told the number of each step that is done or dropped, from 1.

    Raises:
        TrainingError: whatever ``on_step`` finds.
    """
    net, meter, optimisers, epoch = state.net, state.meter, state.optimisers, state.epoch
    net.train()
    walk = batches(
        images, recipe.batch_size, shuffle_seed=recipe.seed, epoch=epoch - 1,
        augmentation=augmentation, start=state.step, shard=ranks,
    )  # fmt: skip
    for step, (inputs, labels) in zip(range(state.step + 1, steps + 1), walk, strict=False):
        meter.begin(step)
        if not dropped(recipe.seed, epoch - 1, step - 1, recipe.drop_ratio):
            samples = min(recipe.batch_size, len(images) - (step - 1) * recipe.batch_size)
            optimisers.zero_grad()
            batch = gradients(inputs, labels, samples, epoch, step)
            meter.check(batch.loss, [p.grad for p in net.parameters() if p.grad is not None])
            optimisers.step()
            meter.add(batch.loss, batch.correct, samples, optimisers.flips)
        on_step(step)
