"""The loss of a network on training images, and its derivatives, without touching the network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pabzip.errors import SearchError
from pabzip.search.isolation import NetworkCopy

Batch = tuple[Tensor, Tensor]
"""Inputs ``float[B, ...]`` and labels ``int64[B]``."""


class LossNetwork(NetworkCopy):
    """The mean cross-entropy of a network over fixed batches, as a function of its weights.

    Batch norm normalizes by the statistics of each batch, as in training; all else (dropout,
    predictive gradients) runs as in evaluation, so that derivatives are exact and nothing is
    drawn at random. Parameters and buffers are detached copies: the network's own weights,
    statistics, gradients, modes and ``requires_grad`` stay as they are, also on an exception.

    Args:
        net: a network that maps inputs to logits.
        weights: the parameters that get derivatives; pruned entries can be zeroed with `prune`.
        batches: inputs and labels, at least one batch; each counts by its number of samples.
        dtype: floating dtype of the computation.
        temperature: the logits are divided by it.

    Attributes:
        input_shape: shape of one input, without the batch dimension.

    Raises:
        SearchError: batches or a dtype of another kind, or a temperature out of range.
    """

    def __init__(
        self,
        net: nn.Module,
        weights: Mapping[str, nn.Parameter],
        batches: Iterable[Batch],
        dtype: torch.dtype,
        temperature: float = 1.0,
    ):
        if not dtype.is_floating_point:
            raise SearchError(f"dtype: expected a floating dtype, found {dtype}")
        if not 0.0 < temperature < math.inf:
            raise SearchError(f"temperature: expected a number above 0, found {temperature!r}")
        super().__init__(
            net,
            weights,
            lambda tensor: (
                tensor.to(dtype, copy=True) if tensor.is_floating_point() else tensor.clone()
            ),
        )
        self._temperature = temperature
        self._batches = [
            (inputs.to(self.device, dtype), labels.to(self.device))
            for inputs, labels in _checked(batches)
        ]
        self.input_shape = tuple(self._batches[0][0].shape[1:])
        self._samples = sum(len(labels) for _, labels in self._batches)

    def gradients(self) -> dict[str, Tensor]:
        """Return g, the gradient of the loss by each searched weight, by name.

        Raises:
            SearchError: the network refuses the batches, or does not give logits for the labels.
        """
        wanted = list(self.weights.values())
        with self.isolated(training=_normalizes):
            parts = (
                torch.autograd.grad(loss, wanted, materialize_grads=True) for loss in self._losses()
            )
            return self._summed(parts)

    def hessian_gradients(self) -> dict[str, Tensor]:
        """Return Hg, the Hessian of the loss times its gradient, by name of each searched weight.

        Two passes: the gradient over all batches, then the derivative of its product with each
        batch's own gradient. The Hessian itself is never formed. Weights that are pruned never move
        again, so their gradients are no part of g here.

        Raises:
            SearchError: as `gradients`, or an operation that has no second derivative.
        """
        wanted = list(self.weights.values())
        gradients = self.gradients()
        with torch.no_grad():
            for name, weight in self.weights.items():
                gradients[name].masked_fill_(weight == 0, 0.0)
        direction = list(gradients.values())
        with self.isolated(training=_normalizes):
            parts = (self._product(loss, wanted, direction) for loss in self._losses())
            return self._summed(parts)

    def _losses(self) -> Iterator[Tensor]:
        """Yield the losses of the batches; they add up to the mean over all samples."""
        for inputs, labels in self._batches:
            logits = self(inputs) / self._temperature
            if logits.dim() != 2 or len(logits) != len(labels):
                raise SearchError(
                    f"{type(self._net).__name__}: expected logits [{len(labels)}, classes] for "
                    f"{len(labels)} labels, found {list(logits.shape)}"
                )
            if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
                raise SearchError(
                    f"batches: expected labels from 0 to {logits.shape[1] - 1} for this network, "
                    f"found {int(labels.min())} to {int(labels.max())}"
                )
            yield F.cross_entropy(logits, labels) * (len(labels) / self._samples)

    def _product(
        self, loss: Tensor, wanted: Sequence[Tensor], direction: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return the Hessian of one loss times ``direction``."""
        try:
            gradients = torch.autograd.grad(loss, wanted, create_graph=True, materialize_grads=True)
            along = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
            return torch.autograd.grad(along, wanted, materialize_grads=True)  # type: ignore[arg-type]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise SearchError(
                f"{type(self._net).__name__}: expected operations that can be derived twice, "
                f"found one that cannot ({error}); search by another method"
            ) from error

    def _summed(self, parts: Iterable[Sequence[Tensor]]) -> dict[str, Tensor]:
        """Return the sums over the batches, by name."""
        total = [torch.zeros_like(weight, requires_grad=False) for weight in self.weights.values()]
        for part in parts:
            torch._foreach_add_(total, list(part))
        return dict(zip(self.weights, total, strict=True))


def batches_of(
    example_inputs: Tensor | Iterable[Any] | None, targets: Tensor | Iterable[Tensor] | None
) -> list[Batch]:
    """Return what a search measures on as pairs of inputs and labels.

    Args:
        example_inputs: one batch of inputs, an iterable of batches, or, without ``targets``, an
            iterable of pairs of inputs and labels, such as a ``DataLoader``.
        targets: the labels, of the same form as ``example_inputs``.

    Raises:
        SearchError: nothing to measure on, or not as many batches of labels as of inputs.
    """
    if example_inputs is None:
        raise SearchError(
            "example_inputs: expected training images and targets= with their labels, found none; "
            "pass those of pabzip.data.batches, or search by a method without data"
        )
    if isinstance(example_inputs, Tensor) or isinstance(targets, Tensor):
        return [(example_inputs, targets)]  # type: ignore[list-item]
    if targets is None:
        return list(example_inputs)
    inputs, labels = list(example_inputs), list(targets)
    if len(inputs) != len(labels):
        raise SearchError(
            f"targets: expected labels for {len(inputs)} batches of example_inputs, found "
            f"{len(labels)}"
        )
    return list(zip(inputs, labels, strict=True))


def _checked(batches: Iterable[Batch]) -> list[Batch]:
    """Return the batches as a list; refuse what is none, and no batch at all."""
    found = list(batches)
    for number, batch in enumerate(found):
        parts = batch if isinstance(batch, Sequence) and not isinstance(batch, str) else (batch,)
        fits = (
            len(parts) == 2
            and all(isinstance(part, Tensor) for part in parts)
            and parts[0].is_floating_point()
            and parts[1].dtype == torch.int64
            and parts[1].dim() == 1
            and parts[0].dim() >= 2
            and len(parts[0]) == len(parts[1]) > 0
        )
        if not fits:
            shown = ", ".join(
                f"{part.dtype} {list(part.shape)}"
                if isinstance(part, Tensor)
                else type(part).__name__
                for part in parts
            )
            raise SearchError(
                f"batches[{number}]: expected a pair of floating inputs [B, ...] and int64 labels "
                f"[B], found {shown}"
            )
    if not found:
        raise SearchError(
            "batches: expected at least one pair of inputs and labels, found none; pass training "
            "images, such as those of pabzip.data.batches"
        )
    return found


def _normalizes(module: nn.Module) -> bool:
    """Say whether a module is batch norm (or instance norm)."""
    return isinstance(module, _NormBase)
