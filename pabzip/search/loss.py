"""SNIP and GraSP: searches by derivatives of the loss on training images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase

from pabzip.errors import SearchError
from pabzip.registry import register_search
from pabzip.search.driver import SearchCall, SearchOptions, shares_options
from pabzip.search.isolation import NetworkCopy

TEMPERATURE = 200.0
"""What GraSP divides the logits by, as in the authors' code."""

BATCH_NORMS = ("batch", "running")
"""What batch norm normalizes by while the loss is derived: the statistics of each batch, as in
training, or the running ones, as in evaluation; at initialization these are those it was made with,
and change nothing."""

Batch = tuple[Tensor, Tensor]
"""Inputs ``float[B, ...]`` and labels ``int64[B]``."""


class LossNetwork(NetworkCopy):
    """The mean cross-entropy of a network over fixed batches, as a function of its weights.

    All but batch norm (dropout, predictive gradients) runs as in evaluation, so that derivatives
    are exact and nothing is drawn at random. Parameters and buffers are detached copies: the
    network's own weights, statistics, gradients, modes and ``requires_grad`` stay as they are, also
    on an exception.

    Args:
        net: a network that maps inputs to logits.
        weights: the parameters that get derivatives; pruned entries can be zeroed with `prune`.
        batches: inputs and labels, at least one batch; each counts by its number of samples.
        dtype: floating dtype of the computation.
        temperature: the logits are divided by it.
        batch_norm: one of `BATCH_NORMS`.

    Attributes:
        input_shape: shape of one input, without the batch dimension.

    Raises:
        SearchError: batches, a dtype or a batch norm of another kind, or a temperature out of
            range.
    """

    def __init__(
        self,
        net: nn.Module,
        weights: Mapping[str, nn.Parameter],
        batches: Iterable[Batch],
        dtype: torch.dtype,
        temperature: float = 1.0,
        batch_norm: str = "batch",
    ):
        if not dtype.is_floating_point:
            raise SearchError(f"dtype: expected a floating dtype, found {dtype}")
        if not 0.0 < temperature < math.inf:
            raise SearchError(f"temperature: expected a number above 0, found {temperature!r}")
        if batch_norm not in BATCH_NORMS:
            raise SearchError(
                f"batch_norm: expected one of {', '.join(BATCH_NORMS)}, found {batch_norm!r}"
            )
        super().__init__(net, weights, dtype)
        self._temperature, self._by_batch = temperature, batch_norm == "batch"
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
        return self._summed(lambda loss: torch.autograd.grad(loss, wanted, materialize_grads=True))

    def hessian_gradients(self) -> dict[str, Tensor]:
        """Return Hg, the Hessian of the loss times its gradient, by name of each searched weight.

        Two passes: the gradient over all batches, then the derivative of its product with each
        batch's own gradient. The Hessian itself is never formed. Weights that are pruned never move
        again, so their gradients are no part of g here.

        Raises:
            SearchError: as `gradients`, or an operation that has no second derivative.
        """
        wanted = list(self.weights.values())
        direction = self.gradients()
        with torch.no_grad():
            for name, weight in self.weights.items():
                direction[name].masked_fill_(weight == 0, 0.0)

        def product(loss: Tensor) -> tuple[Tensor, ...]:
            try:
                own = torch.autograd.grad(loss, wanted, create_graph=True, materialize_grads=True)
                pairs = zip(own, direction.values(), strict=True)
                along = sum((g * d).sum() for g, d in pairs)
                return torch.autograd.grad(along, wanted, materialize_grads=True)  # type: ignore[arg-type]
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise SearchError(
                    f"{type(self._net).__name__}: expected operations that can be derived twice, "
                    f"found one that cannot ({error}); search by another method"
                ) from error

        with sdpa_kernel(SDPBackend.MATH):  # torch's fast kernels have no second derivative
            return self._summed(product)

    def _summed(self, derivative: Callable[[Tensor], Sequence[Tensor]]) -> dict[str, Tensor]:
        """Return the sum over the batches of what ``derivative`` gives for each one's loss."""
        total = [torch.zeros_like(weight, requires_grad=False) for weight in self.weights.values()]
        with self.isolated(training=lambda m: self._by_batch and isinstance(m, _NormBase)):
            for loss in self._losses():
                torch._foreach_add_(total, list(derivative(loss)))
        return dict(zip(self.weights, total, strict=True))

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


def _batches_of(call: SearchCall) -> list[Batch]:
    """Return the images and labels of a call, in any form that `snip` takes, as pairs."""
    example_inputs, targets = call.example_inputs, call.targets
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


class SnipScorer:
    """Scores weights by their connection sensitivity, ``|g * w|``.

    g is the gradient of the mean cross-entropy over the batches, so a score is how fast the loss
    changes when the weight is scaled, up or down.

    Args:
        network: the loss, on copies of the weights.

    Source: Lee et al. 2019, Section 4.1, but for their division of the scores by the sum of all
    scores, which changes no order.
    """

    def __init__(self, network: LossNetwork):
        self._network = network

    def scores(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the connection sensitivity of each weight under ``masks``."""
        self._network.prune(masks)
        gradients = self._network.gradients()
        with torch.no_grad():
            return {
                name: gradients[name].mul_(weight).abs_()
                for name, weight in self._network.weights.items()
            }


@register_search("snip", needs_data=True, rounds=1, takes=("dtype", "batch_norm"))
@shares_options
def snip(
    net: nn.Module,
    keep_ratio: float,
    *,
    dtype: torch.dtype = torch.float32,
    batch_norm: str = "running",
    **options: Unpack[SearchOptions],
) -> dict[str, Tensor]:
    """Prune the connections whose removal would change the loss least, by SNIP.

    Arguments, result and errors are those of `pabzip.search.synflow`, with these differences:

    - ``example_inputs`` are training images: a batch ``float[B, ...]``; several in an iterable; or,
      if ``targets`` is not given, an iterable of pairs of images and labels, such as a
      ``DataLoader``. On any device; about ten a class are usual. Batches that do not fit the
      network raise ``SearchError``.
    - ``targets`` are the labels, ``int64[B]`` for each batch.
    - ``input_shape`` is not used; the images have one.
    - ``iterations`` is one where it is None, as published. One round prunes by the dense network's
      scores and can empty a layer at small keep ratios.
    - ``dtype`` is any floating one, that of the computation.
    - ``batch_norm`` is what batch norm normalizes by: ``"running"``, the statistics of evaluation,
      which before training leave activations as they are, or ``"batch"``, those of each batch. The
      authors' code and that of Peek-a-Boo take the running ones.

    Source: Lee et al. 2019, Algorithm 1. Deviations: the authors' code also prunes biases and keeps
    ``round(keep_ratio * N)`` weights, Peek-a-Boo's keeps as many as here; ties at the threshold are
    settled by position.
    """
    call = SearchCall(net, keep_ratio, **options)
    network = LossNetwork(net, call.chosen, _batches_of(call), dtype, batch_norm=batch_norm)
    return call.run(SnipScorer(network), network.input_shape, rounds=1)


class GraspScorer:
    """Scores weights by what they do for the gradient flow, ``w * Hg``.

    g is the gradient of the mean cross-entropy over the batches and H its Hessian, both over the
    searched weights, with the logits divided by the network's temperature. To first order, taking
    a weight away changes ``g . g`` by ``-2 w * Hg``. The paper writes ``S = -w * Hg`` and removes
    the weights with the highest S, which hinder the flow; higher is kept here, hence the sign.

    Args:
        network: the loss, on copies of the weights.

    Source: Wang et al. 2020, Section 4 and Algorithm 2.
    """

    def __init__(self, network: LossNetwork):
        self._network = network

    def scores(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what each weight does for the gradient flow under ``masks``; may be negative."""
        self._network.prune(masks)
        products = self._network.hessian_gradients()
        with torch.no_grad():
            return {
                name: products[name].mul_(weight) for name, weight in self._network.weights.items()
            }


@register_search("grasp", needs_data=True, rounds=1, takes=("dtype", "batch_norm", "temperature"))
@shares_options
def grasp(
    net: nn.Module,
    keep_ratio: float,
    *,
    dtype: torch.dtype = torch.float32,
    batch_norm: str = "batch",
    temperature: float = TEMPERATURE,
    **options: Unpack[SearchOptions],
) -> dict[str, Tensor]:
    """Prune the weights whose removal hurts the gradient flow least, by GraSP.

    The weights with the highest ``-w * Hg`` are pruned. Arguments, result and errors are those of
    `snip`, with these differences:

    - ``net`` needs operations with second derivatives; others raise ``SearchError``.
    - ``example_inputs``: the authors use 10 to 25 images a class.
    - ``temperature``, above 0, is what the logits are divided by. High makes the predictions nearly
      uniform, so that the labels matter less than the network's features; 200 is published.
    - ``batch_norm`` is ``"batch"`` where it is not given: the authors' code scores the network in
      training mode, that of Peek-a-Boo in evaluation mode, which is ``"running"``.

    Source: Wang et al. 2020, Section 4 and Algorithm 2; the temperature is in the authors' code
    alone. Deviations: every layer keeps its own weights, where their code draws the classifier
    anew first; their code leaves one weight more; batches may be of any classes; ties at the
    threshold are settled by position.
    """
    call = SearchCall(net, keep_ratio, **options)
    batches = _batches_of(call)
    network = LossNetwork(net, call.chosen, batches, dtype, temperature, batch_norm)
    return call.run(GraspScorer(network), network.input_shape, rounds=1)
