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
from pabzip.train.modes import evaluation_mode

BATCH_SIZE = 256
"""Images in a batch of `evaluate`."""


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
    """Measure a classifier on labelled images.

    Args:
        model: a network (evaluated in evaluation mode, which is undone afterwards, and with its
            weights contiguous, as a loaded file has them, wherever they lie meanwhile), or any
            callable from normalised images ``float32[B, C, H, W]`` to logits ``[B, classes]``
            (tensor or array), such as a wrapped ONNX session.
        images: what to measure on, in memory or in files.
        device: where the batches go; by default the network's own, or the CPU for a callable.
        batch_size: images at a time. Another size than the default may change the last bits of
            the logits.

    Raises:
        DataError: ``images`` is empty, or a file of it cannot be read.
    """
    if len(images) == 0:
        raise DataError("evaluate: expected at least one image, found none")
    if not isinstance(model, nn.Module):
        return _measure(model, images, device or "cpu", batch_size)
    own = next((parameter.device for parameter in model.parameters()), "cpu")
    weights = _rearranged(model)
    with evaluation_mode(model):
        forward = partial(functional_call, model, weights) if weights else model
        return _measure(forward, images, device or own, batch_size)


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


def _measure(
    model: Callable[[Tensor], Any],
    images: AnyImages,
    device: torch.device | str,
    batch_size: int,
) -> Evaluation:
    """Sum over the batches on the device, and read the sums once."""
    correct = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    with torch.no_grad():
        for inputs, labels in batches(images, batch_size, device=device):
            logits = torch.as_tensor(model(inputs), device=device)
            correct += (logits.argmax(1) == labels).sum()
            loss += F.cross_entropy(logits.double(), labels, reduction="sum")
    samples = len(images)
    return Evaluation(int(correct) / samples, float(loss) / samples, samples)
