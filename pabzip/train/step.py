"""One batch: forward and backward pass, shards, dropped steps.

Floating-point sums depend on their order. Here the order is a property of the run and not of the
machines: a batch is cut into ``shards`` parts, a power of two, and whatever the parts give is added
along one binary tree, ``((0 + 1) + (2 + 3)) + ...``. A process that has an aligned part of the
shards adds along its part of the tree, and the processes along the rest (`World.add_up`), so every
number of processes that divides ``shards`` gives the same sums, bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from pabzip.data import AnyAugmentation, AnyImages, batches
from pabzip.data.order import random_words
from pabzip.errors import RecipeError
from pabzip.train.config import Recipe
from pabzip.train.distributed import World
from pabzip.train.precision import Precision
from pabzip.train.run_state import RunState

# Weights take the streams of the generator from 0 upwards, latent weights the next from 2^30, and
# the order and augmentation of the images the upper half; drops take one an epoch from here.
_FIRST_STREAM = 3 * 2**29
_MOST_EPOCHS = 2**29


def dropped(seed: int, epoch: int, step: int, ratio: float) -> bool:
    """Return whether a step is left out: neither forward, nor backward, nor update.

    Each step is decided alone, so a run resumes anywhere and all ranks of a distributed run agree.
    The expected cost of a run is ``1 - ratio`` of that without dropping.

    Args:
        seed: the run's, ``0 <= seed < 2**64``.
        epoch: counted from 0, as in `pabzip.data.batches`.
        step: of the epoch, counted from 0.
        ratio: fraction of the steps to leave out, at least 0, below 1; 0 drops none.

    Raises:
        ValueError: not ``0 <= epoch < 2**29``, or a negative step.
        SeedError: seed out of range.

    Source: Peek-a-Boo, Section 4.2 and Appendix B; Wang et al. 2019 (E2-Train), where the ratio
    is 0.5.
    """
    if not 0 <= epoch < _MOST_EPOCHS:
        raise ValueError(f"epoch: expected 0 <= epoch < 2**29, found {epoch}")
    if step < 0:
        raise ValueError(f"step: expected 0 or more, found {step}")
    if ratio == 0:
        return False
    word = int(random_words(seed, _FIRST_STREAM + epoch, step, step + 1)[0])
    return word < ratio * 2**31


def bounds(samples: int, shards: int, shard: int) -> tuple[int, int]:
    """Return where a shard begins and ends in a batch.

    Shards differ by one sample at most, and the part of a process is that of its shards together.
    """
    return samples * shard // shards, samples * (shard + 1) // shards


def shards_of(rank: int, ranks: int, shards: int) -> range:
    """Return the shards that a process computes; ``ranks`` divides ``shards``."""
    each = shards // ranks
    return range(rank * each, (rank + 1) * each)


def tree_sum(parts: Iterator[torch.Tensor]) -> torch.Tensor:
    """Add tensors along a binary tree as they come; at most log2 of their number wait.

    Args:
        parts: a power of two of tensors of one shape; they are used up.
    """
    waiting: list[tuple[int, torch.Tensor]] = []
    for part in parts:
        level = 0
        while waiting and waiting[-1][0] == level:
            part = waiting.pop()[1].add_(part)
            level += 1
        waiting.append((level, part))
    assert len(waiting) == 1, "expected a power of two of parts"
    return waiting[0][1]


def step_seed(seed: int, epoch: int, step: int, shard: int) -> int:
    """Return the seed of torch's generators for one shard of one step.

    What a network draws at random (dropout) then depends on where the run stands and on nothing
    that happened before, so it is the same after a resumption and in any number of processes.
    """
    text = f"pabzip {seed} {epoch} {step} {shard}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True, slots=True)
class BatchNumbers:
    """What a step learns about its batch, the whole of it, on every process.

    Attributes:
        loss: mean cross-entropy, a scalar.
        correct: samples classified rightly, a scalar.
    """

    loss: torch.Tensor
    correct: torch.Tensor


class BatchGradients:
    """Leaves the gradient of a batch's mean loss in the parameters' ``grad``.

    With one shard this is one forward and one backward pass. With several, each shard has its own
    forward and backward pass from the same state: batch norm normalizes by the shard's own
    statistics, and its running statistics become the mean of the shards'. Gradients, losses and
    statistics are added in the order of `pabzip.train.step`, before anything decides on them.

    Args:
        net: the network, on its final device.
        seed: the recipe's; with epoch, step and shard it decides what dropout draws.
        shards: parts of a batch, a power of two that the number of processes divides.
        world: the processes.
        precision: in which forward and backward passes compute.
    """

    def __init__(self, net: nn.Module, seed: int, shards: int, world: World, precision: Precision):
        self._net = net
        self._precision = precision
        self._seed = seed
        self._shards = shards
        self._world = world
        self._parameters = [p for p in net.parameters() if p.requires_grad]
        self._buffers = list(net.buffers())
        self._statistics = [buffer for buffer in self._buffers if buffer.is_floating_point()]

    def __call__(
        self, inputs: torch.Tensor, labels: torch.Tensor, samples: int, epoch: int, step: int
    ) -> BatchNumbers:
        """Compute one batch.

        Args:
            inputs: ``float32[B, C, H, W]``, this process's part of the batch.
            labels: ``int64[B]``.
            samples: in the whole batch.
            epoch: counted from 1.
            step: counted from 1 in the epoch.
        """
        if self._shards == 1:
            _seed_generators(step_seed(self._seed, epoch, step, 0), labels.device)
            loss, correct = self._forward(inputs, labels)
            self._precision.scaled(loss).backward()  # type: ignore[no-untyped-call]
            self._unscale()
            return BatchNumbers(loss.detach(), correct)
        total = tree_sum(self._parts(inputs, labels, samples, epoch, step))
        self._world.add_up(total)
        return self._spread(total)

    def _parts(
        self, inputs: torch.Tensor, labels: torch.Tensor, samples: int, epoch: int, step: int
    ) -> Iterator[torch.Tensor]:
        """Yield for each shard of this process one vector of all that is to be added."""
        before = [buffer.clone() for buffer in self._buffers]
        rank, ranks = self._world.rank, self._world.ranks
        first, _ = bounds(samples, ranks, rank)
        for shard in shards_of(rank, ranks, self._shards):
            _restore(self._buffers, before)
            begin, end = bounds(samples, self._shards, shard)
            mine = slice(begin - first, end - first)
            _seed_generators(step_seed(self._seed, epoch, step, shard), labels.device)
            loss, correct = self._forward(inputs[mine], labels[mine])
            share = loss * ((end - begin) / samples)
            scaled = self._precision.scaled(share)
            gradients = torch.autograd.grad(scaled, self._parameters, allow_unused=True)
            pieces = [
                torch.zeros_like(parameter) if gradient is None else gradient
                for parameter, gradient in zip(self._parameters, gradients, strict=True)
            ]
            # A mean of a power of two of shards: the division is exact.
            pieces += [values / self._shards for values in self._statistics]
            pieces += [share.detach(), correct.to(share.dtype)]
            yield torch.cat([piece.reshape(-1).float() for piece in pieces])

    def _spread(self, total: torch.Tensor) -> BatchNumbers:
        """Hand the sums back to gradients and statistics."""
        targets = [*self._parameters, *self._statistics]
        parts = torch.split(total, [*(target.numel() for target in targets), 1, 1])
        for parameter, part in zip(self._parameters, parts, strict=False):
            parameter.grad = part.view(parameter.shape)
        self._unscale()
        with torch.no_grad():
            for values, part in zip(self._statistics, parts[len(self._parameters) :], strict=False):
                values.copy_(part.view(values.shape))
        return BatchNumbers(parts[-2][0], parts[-1][0])

    def _forward(
        self, inputs: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean loss and the number of samples classified rightly."""
        try:
            logits = self._precision.logits(self._net, inputs)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise RecipeError(
                f"batch_size: expected two images or more in each shard of a batch, as batch norm "
                f"needs, found {len(inputs)} with shards = {self._shards}; raise batch_size or "
                "lower shards"
            ) from error
        return F.cross_entropy(logits, labels), (logits.detach().argmax(1) == labels).sum()

    def _unscale(self) -> None:
        """Turn the gradients that were left into those of the loss."""
        self._precision.unscale([p.grad for p in self._parameters if p.grad is not None])


def _restore(buffers: list[torch.Tensor], values: list[torch.Tensor]) -> None:
    """Put buffers back to what they were before the step."""
    with torch.no_grad():
        for buffer, value in zip(buffers, values, strict=True):
            buffer.copy_(value)


def _seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators that a network on ``device`` draws from."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def steps_of(samples: int, batch_size: int, shards: int = 1) -> int:
    """Return the number of steps in an epoch.

    Every image is used once, but for a last batch that has not two images for each shard: batch
    norm could not normalize a single one.
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
        state: the run's; its network is put into training mode, its optimizers take the steps.
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
    net, meter, optimizers, epoch = state.net, state.meter, state.optimizers, state.epoch
    net.train()
    walk = batches(
        images, recipe.batch_size, shuffle_seed=recipe.seed, epoch=epoch - 1,
        augmentation=augmentation, start=state.step, shard=ranks,
    )  # fmt: skip
    for step, (inputs, labels) in zip(range(state.step + 1, steps + 1), walk, strict=False):
        meter.begin(step)
        if not dropped(recipe.seed, epoch - 1, step - 1, recipe.drop_ratio):
            samples = min(recipe.batch_size, len(images) - (step - 1) * recipe.batch_size)
            optimizers.zero_grad()
            batch = gradients(inputs, labels, samples, epoch, step)
            meter.check(batch.loss, [p.grad for p in net.parameters() if p.grad is not None])
            optimizers.step()
            meter.add(batch.loss, batch.correct, samples, optimizers.flips)
        on_step(step)
