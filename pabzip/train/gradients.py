"""The gradient of one batch: in one piece, or in shards over one or several processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from pabzip.errors import RecipeError
from pabzip.train.precision import Precision
from pabzip.train.sharding import bounds, shards_of, step_seed, tree_sum
from pabzip.train.world import World


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
    forward and backward pass from the same state: batch norm normalises by the shard's own
    statistics, and its running statistics become the mean of the shards'. Gradients, losses and
    statistics are added in the order of `pabzip.train.sharding`, before anything decides on them.

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
