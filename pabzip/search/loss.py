"""SNIP and GraSP: searches by derivatives of the loss on training data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

import torch
from torch import Tensor, nn

from pabzip.registry import register_search
from pabzip.search.driver import SearchCall, SearchOptions, shares_options
from pabzip.search.loss_network import LossNetwork, loss_network

TEMPERATURE = 200.0
"""What GraSP divides the logits by, as in the authors' code."""


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

    - ``example_inputs`` are training data: a batch (a tensor ``[B, ...]``, a tuple or a mapping);
      several batches in an iterable; or, if ``targets`` is not given, an iterable of pairs of
      inputs and targets, such as a ``DataLoader``. On any device; about ten samples a class are
      usual. Batches that do not fit the network raise ``SearchError``. A tuple is one batch's
      arguments where ``targets`` is a tensor or a mapping, and, without ``targets``, where
      ``loss`` is given and a tensor is in it; else it is an iterable.
    - ``targets`` are the labels, ``int64[B]`` for each batch; with ``loss``, whatever it takes.
    - ``loss`` returns the mean loss of a batch, a floating scalar: it is called as
      ``loss(outputs, targets)``, or without targets as ``loss(outputs)``, where outputs are what
      the network returns, or what ``output`` makes of that. None is the cross-entropy of the
      logits, ``[B, classes]``; where batches are mappings and there are no targets, it is the
      ``loss`` that the network returns itself, as those of transformers do, given labels.
    - ``input_shape`` is not used; the data have one.
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
    network = loss_network(call, dtype, batch_norm)
    return call.run(SnipScorer(network), network.inputs, rounds=1)


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
      uniform, so that the labels matter less than the network's features; 200 is published. A
      loss that is given, or the network's own, is taken as it is.
    - ``batch_norm`` is ``"batch"`` where it is not given: the authors' code scores the network in
      training mode, that of Peek-a-Boo in evaluation mode, which is ``"running"``.

    Source: Wang et al. 2020, Section 4 and Algorithm 2; the temperature is in the authors' code
    alone. Deviations: every layer keeps its own weights, where their code draws the classifier
    anew first; their code leaves one weight more; batches may be of any classes; ties at the
    threshold are settled by position.
    """
    call = SearchCall(net, keep_ratio, **options)
    network = loss_network(call, dtype, batch_norm, temperature)
    return call.run(GraspScorer(network), network.inputs, rounds=1)
