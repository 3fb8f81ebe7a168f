"""GraSP: keep the weights whose removal would hurt the gradient flow most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pabzip.init import Selection
from pabzip.registry import register_search
from pabzip.search.driver import OnIteration, iterative_search, search_weights
from pabzip.search.loss import LossNetwork, batches_of
from pabzip.search.schedule import prune_groups

TEMPERATURE = 200.0
"""What the logits are divided by, as in the authors' code."""


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


@register_search("grasp", needs_data=True, rounds=1, takes=("dtype", "temperature"))
def grasp(
    net: nn.Module,
    keep_ratio: float,
    *,
    input_shape: Sequence[int] | None = None,
    example_inputs: Tensor | Iterable[Any] | None = None,
    targets: Tensor | Iterable[Tensor] | None = None,
    only: Selection | None = None,
    skip: Selection | None = None,
    weights: Mapping[str, nn.Parameter] | None = None,
    iterations: int | None = None,
    schedule: str = "exponential",
    scope: str = "global",
    seed: int | None = None,
    on_iteration: OnIteration | None = None,
    dtype: torch.dtype = torch.float32,
    temperature: float = TEMPERATURE,
) -> dict[str, Tensor]:
    """Find a mask by GraSP and apply it: pruned weights become +0.0, survivors keep their bits.

    The weights with the highest ``-w * Hg`` are pruned. Nothing else of ``net`` changes: biases,
    batch-norm statistics, gradients, ``requires_grad``, modes, and the global random state are as
    before; on an exception the weights, too.

    Args:
        net: a network drawn by `pabzip.init_`, or any network with ``weights``; its operations
            need second derivatives.
        keep_ratio: fraction of the weights that survives, in (0, 1].
        input_shape: not used; the images have one.
        example_inputs: training images: a batch ``float[B, ...]``; several in an iterable; or, if
            ``targets`` is not given, an iterable of pairs of images and labels, such as a
            ``DataLoader``. On any device; the authors use 10 to 25 a class. Batch norm
            normalizes each batch by itself.
        targets: the labels, ``int64[B]`` for each batch.
        only: the seeded weights to decide on, as for `pabzip.search.synflow`.
        skip: seeded weights that stay as they are.
        weights: in place of ``only`` and ``skip``, any parameters of ``net`` by name.
        iterations: rounds of scoring and pruning; None is the published number, one.
        schedule: how the number of survivors falls, one of `pabzip.search.SCHEDULES`.
        scope: ``"global"`` for one threshold, ``"layer"`` for one of each weight tensor.
        seed: not used.
        on_iteration: called as ``on_iteration(i, iterations)`` after each round, i from 1.
        dtype: of the computation.
        temperature: what the logits are divided by, above 0. High makes the predictions nearly
            uniform, so that the labels matter less than the network's features; 200 is published.

    Returns:
        The masks by name, in the order of the weights: bool, of the weight's shape, on its device.

    Raises:
        SearchError: an argument out of range, batches that do not fit the network, an operation
            without a second derivative, scores that are not finite (the layer is named), or layer
            collapse (the layers are named).
        SeedError: ``weights`` is not given and ``net`` was not drawn from a seed, or ``only`` or
            ``skip`` names nothing.

    Source: Wang et al. 2020, Section 4 and Algorithm 2; the temperature is in the authors' code
    alone. Deviations: every layer keeps its own weights, where their code draws the classifier
    anew first; batches may be of any classes; ties at the threshold are settled by position.
    """
    chosen = search_weights(net, only, skip, weights)
    network = LossNetwork(net, chosen, batches_of(example_inputs, targets), dtype, temperature)
    return iterative_search(
        net, chosen, GraspScorer(network), prune_groups(chosen, keep_ratio, scope),
        network.input_shape, 1 if iterations is None else iterations, schedule=schedule,
        on_iteration=on_iteration,
    )  # fmt: skip
