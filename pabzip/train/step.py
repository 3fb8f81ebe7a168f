"""One training step: shards, gradients, dropped steps, and the metrics of the epoch.

Floating-point sums depend on their order. Here the order is a property of the run and not of the
machines: a batch is cut into ``shards`` parts, a power of two, and whatever the parts give is added
along one binary tree, ``((0 + 1) + (2 + 3)) + ...``. A process that has an aligned part of the
shards adds along its part of the tree, and the processes along the rest
(`ProcessGroup.all_reduce`), so every number of processes that divides ``shards`` gives the same
sums, bit for bit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pabzip.data.order import random_words
from pabzip.errors import RecipeError, TrainingError
from pabzip.train.distributed import ProcessGroup, bounds
from pabzip.train.optimizers import Optimizers
from pabzip.train.precision import Precision
from pabzip.train.results import Progress

# Weights take the streams of the generator from 0 upwards, latent weights the next from 2^30, and
# the order and augmentation of the images the upper half; drops take one an epoch from here.
_FIRST_STREAM = 3 * 2**29
_MOST_EPOCHS = 2**29


def dropped(seed: int, epoch: int, step: int, ratio: float) -> bool:
    """Return whether a step is left out: neither forward, nor backward, nor update.

    Each step is decided alone, so a run resumes anywhere and all ranks of a distributed run agree.
    The expected cost of a run is ``1 - ratio`` of that without dropping. Epochs and their steps
    are counted from 0, as in `pabzip.data.batches`.

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


def steps_per_epoch(samples: int, batch_size: int, shards: int = 1) -> int:
    """Return the number of steps in an epoch.

    Every image is used once, but for a last batch that has not two images for each shard: batch
    norm could not normalize a single one.
    """
    steps, rest = divmod(samples, batch_size)
    if steps and rest < min(2 * shards, batch_size):
        return steps
    return steps + (1 if rest else 0)


def tree_sum(parts: Iterator[Tensor]) -> Tensor:
    """Add tensors along a binary tree as they come; at most log2 of their number wait.

    They are a power of two of one shape, and are overwritten.
    """
    waiting: list[tuple[int, Tensor]] = []
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
    that happened before, so it is the same after a resume and in any number of processes.
    """
    text = f"pabzip {seed} {epoch} {step} {shard}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


class BatchGradients:
    """Leaves the gradient of a batch's mean loss in the parameters' ``grad``.

    With one shard this is one forward and one backward pass. With several, each shard has its own
    forward and backward pass from the same state: batch norm normalizes by the shard's own
    statistics, and its running statistics become the mean of the shards'. Gradients, losses and
    statistics are added in the order of `pabzip.train.step`, before anything decides on them.

    The network is on its final device. Seed, epoch, step and shard decide what dropout draws, and
    the number of processes divides ``shards``.
    """

    def __init__(
        self, net: nn.Module, seed: int, shards: int, group: ProcessGroup, precision: Precision
    ):
        self._net, self._precision = net, precision
        self._seed, self._shards, self._group = seed, shards, group
        self._parameters = [p for p in net.parameters() if p.requires_grad]
        self._buffers = list(net.buffers())
        self._statistics = [buffer for buffer in self._buffers if buffer.is_floating_point()]

    def __call__(
        self, inputs: Tensor, labels: Tensor, samples: int, epoch: int, step: int
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Compute one batch.

        Args:
            inputs: ``float32[B, C, H, W]``, this process's part of the batch.
            labels: ``int64[B]``.
            samples: in the whole batch.
            epoch: counted from 1.
            step: counted from 1 in the epoch.

        Returns:
            For the whole batch, on every process: its mean loss, how many samples were classified
            rightly, and the gradients, which are the tensors in the parameters' ``grad``.
        """
        if self._shards == 1:
            _seed_generators(step_seed(self._seed, epoch, step, 0), labels.device)
            loss, correct = self._forward(inputs, labels)
            self._precision.scaled(loss).backward()  # type: ignore[no-untyped-call]
            loss = loss.detach()
        else:
            total = tree_sum(self._parts(inputs, labels, samples, epoch, step))
            self._group.all_reduce(total)
            loss, correct = self._spread(total)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        self._precision.unscale(gradients)
        return loss, correct, gradients

    def _parts(
        self, inputs: Tensor, labels: Tensor, samples: int, epoch: int, step: int
    ) -> Iterator[Tensor]:
        """Yield for each shard of this process one vector of all that is to be added."""
        before = [buffer.clone() for buffer in self._buffers]
        rank, ranks = self._group.rank, self._group.size
        first, _ = bounds(samples, ranks, rank)
        for shard in range(*bounds(self._shards, ranks, rank)):
            with torch.no_grad():
                for buffer, value in zip(self._buffers, before, strict=True):
                    buffer.copy_(value)
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

    def _spread(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """Hand the sums back to gradients and statistics; return loss and correct."""
        targets = [*self._parameters, *self._statistics]
        parts = torch.split(total, [*(target.numel() for target in targets), 1, 1])
        for parameter, part in zip(self._parameters, parts, strict=False):
            parameter.grad = part.view(parameter.shape)
        with torch.no_grad():
            for values, part in zip(self._statistics, parts[len(self._parameters) :], strict=False):
                values.copy_(part.view(values.shape))
        return parts[-2][0], parts[-1][0]

    def _forward(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
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


def _seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators that a network on ``device`` draws from."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def train_step(
    gradients: BatchGradients,
    optimizers: Optimizers,
    metrics: EpochMetrics,
    batch: tuple[Tensor, Tensor],
    samples: int,
    epoch: int,
    step: int,
) -> None:
    """Take one step: gradients, then flips and updates, then metrics. Nothing waits for the device.

    The last four arguments are those of `BatchGradients`.
    """
    optimizers.zero_grad()
    loss, correct, found = gradients(*batch, samples, epoch, step)
    metrics.check(loss, found)
    optimizers.step()
    metrics.add(loss, correct, samples, optimizers.flips)


class EpochMetrics:
    """Loss, accuracy and flips of one epoch, counted from 1, summed on the device until `read`."""

    def __init__(self, epoch: int, device: torch.device):
        self._epoch = epoch
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)
        # The first step that went wrong (0: none so far) and its loss.
        self._failure = torch.zeros(2, dtype=torch.float64, device=device)
        self._step = 0
        self._taken = 0
        self._samples = 0

    def begin(self, step: int) -> None:
        """Say which step comes next, counted from 1 in the epoch; it may be dropped."""
        self._step = step

    def check(self, loss: Tensor, gradients: list[Tensor]) -> None:
        """Remember this step, for `read` to report, if the loss or a gradient is not finite."""
        largest = _largest(gradients)
        loss = loss.detach().double()
        sound = torch.isfinite(loss) & torch.isfinite(largest) | (self._failure[0] > 0)
        here = torch.stack([torch.full_like(loss, self._step), loss])
        self._failure = torch.where(sound, self._failure, here)

    def add(self, loss: Tensor, correct: Tensor, samples: int, flips: Tensor) -> None:
        """Add one step: scalars on the device, and the number of samples in the whole batch."""
        self._taken += 1
        self._samples += samples
        self._sums += torch.stack(
            [loss.detach().double() * samples, correct.double(), flips.double()]
        )

    def read(self) -> Progress:
        """Wait for the device and return the epoch's numbers so far.

        Raises:
            TrainingError: a loss or gradient was not finite; the message names epoch and step.
        """
        loss, correct, flips, failed, found = torch.cat([self._sums, self._failure]).tolist()
        if failed:
            finite = math.isfinite(found)
            raise TrainingError(
                f"epoch {self._epoch}, step {int(failed)}: expected a finite loss and finite "
                f"gradients, found a loss of {found:g}"
                f"{' with an infinite gradient' if finite else ''}; begin again with a lower "
                "sgd.lr, or use an architecture with batch norm"
            )
        samples, taken = max(self._samples, 1), max(self._taken, 1)
        return Progress(self._epoch, self._step, loss / samples, correct / samples, flips / taken)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums as plain values; `read` first, so that no failure is saved."""
        return {
            "sums": self._sums.tolist(),
            "step": self._step,
            "taken": self._taken,
            "samples": self._samples,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the sums of a `state_dict`, to the bit."""
        self._sums.copy_(torch.tensor(state["sums"], dtype=torch.float64))
        self._step = int(state["step"])
        self._taken = int(state["taken"])
        self._samples = int(state["samples"])


def _largest(gradients: list[Tensor]) -> Tensor:
    """Return the largest magnitude of all, a scalar; not finite if one of them is not."""
    if any(gradient.device.type != "cpu" for gradient in gradients):
        return torch.nn.utils.get_total_norm(gradients, norm_type=torch.inf)
    # On a CPU the norm takes many times as long as the extremes.
    ends = [end for gradient in gradients if gradient.numel() for end in torch.aminmax(gradient)]
    return torch.stack(ends).abs().amax() if ends else torch.zeros(())
