"""Accuracy and loss of anything that turns images into logits.

Counts are exact integers and need no metrics library, so evaluation works wherever torch does. The
order and the size of the batches are fixed here, in one place: training and ``pabzip eval`` print
the same numbers because they run the same code on the same batches, with weights that lie the same
way in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from pabzip.data import AnyImages, batches
from pabzip.errors import DataError
from pabzip.train.build import evaluation_mode

BATCH_SIZE = 256
"""Images in a batch of `evaluate`."""

_ALONE = (0, 1)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `evaluate` found; the keys of ``pabzip eval --json``.

    Attributes:
        accuracy: fraction of the samples whose largest logit is their label's.
        loss: mean cross-entropy in nats.
        samples: number of images.
    """

    accuracy: float
    loss: float
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by name."""
        return dataclasses.asdict(self)


def evaluate(
    model: nn.Module | Callable[[Tensor], Any],
    images: AnyImages,
    *,
    device: torch.device | str | None = None,
    batch_size: int = BATCH_SIZE,
) -> Evaluation:
    """Measure a classifier on labeled images.

    Args:
        model: a network (evaluated in evaluation mode, which is undone afterwards, and with its
            weights contiguous, as a loaded file has them, wherever they lie meanwhile), or any
            callable from normalized images ``float32[B, C, H, W]`` to logits ``[B, classes]``
            (tensor or array), such as a wrapped ONNX session.
        images: what to measure on, in memory or in files.
        device: where the batches go; by default the network's own, or the CPU for a callable.
        batch_size: images at a time. Another size than the default may change the last bits of
            the logits.

    Raises:
        DataError: ``images`` is empty, or a file of it cannot be read.
    """
    if isinstance(model, nn.Module):
        sums = batch_sums(model, images, device=device, batch_size=batch_size)
    else:
        sums = _sums(model, images, device or "cpu", batch_size, _ALONE)
    return summarized(sums, len(images))


def batch_sums(
    net: nn.Module,
    images: AnyImages,
    *,
    device: torch.device | str | None = None,
    batch_size: int = BATCH_SIZE,
    part: tuple[int, int] = _ALONE,
) -> Tensor:
    """Measure the batches of one process; the sums of all of them, added, are those of one alone.

    Args:
        net: as for `evaluate`.
        images: as for `evaluate`.
        device: as for `evaluate`.
        batch_size: as for `evaluate`.
        part: the rank of this process and the number of processes.

    Returns:
        ``float64[batches, 2]`` on the device: how many images of each batch were classified
        rightly, and their summed loss; zeros for the batches of other processes.

    Raises:
        DataError: as `evaluate`.
    """
    own = next((parameter.device for parameter in net.parameters()), "cpu")
    weights = _rearranged(net)
    with evaluation_mode(net):
        forward = partial(functional_call, net, weights) if weights else net
        return _sums(forward, images, device or own, batch_size, part)


def summarized(sums: Tensor, samples: int) -> Evaluation:
    """Return what `batch_sums` of all processes, added, tell of ``samples`` images."""
    correct, loss = sums.sum(0).tolist()
    return Evaluation(correct / samples, loss / samples, samples)


def _rearranged(net: nn.Module) -> dict[str, Tensor]:
    """Return contiguous copies of the parameters that are not, such as those with channels last.

    A convolution adds in another order where its weights lie otherwise. Strides decide, not
    ``is_contiguous``, for which a kernel of one pixel lies both ways.
    """
    return {
        name: parameter.detach().clone(memory_format=torch.contiguous_format)
        for name, parameter in net.named_parameters()
        if parameter.stride() != torch.empty(parameter.shape, device="meta").stride()
    }


def _sums(
    model: Callable[[Tensor], Any],
    images: AnyImages,
    device: torch.device | str,
    batch_size: int,
    part: tuple[int, int],
) -> Tensor:
    """Compute what `batch_sums` returns; nothing waits for the device."""
    if len(images) == 0:
        raise DataError("evaluate: expected at least one image, found none")
    count = -(-len(images) // batch_size)
    sums = torch.zeros(count, 2, dtype=torch.float64, device=device)
    rank, ranks = part
    mine = range(rank * count // ranks, (rank + 1) * count // ranks)
    with torch.no_grad():
        walk = batches(images, batch_size, device=device, start=mine.start)
        for batch, (inputs, labels) in zip(mine, walk, strict=False):
            logits = torch.as_tensor(model(inputs), device=device)
            sums[batch, 0] = (logits.argmax(1) == labels).sum()
            sums[batch, 1] = F.cross_entropy(logits.double(), labels, reduction="sum")
    return sums
