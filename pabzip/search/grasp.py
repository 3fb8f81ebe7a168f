"""GraSP: keep the weights whose removal would hurt the gradient flow most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from pabzip.registry import register_search
from pabzip.search.driver import OnIteration, iterative_search, search_weights
from pabzip.search.loss import Batch, LossNetwork
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


@register_search("grasp", needs_data=True)
def grasp(
    net: nn.Module,
    keep_ratio: float,
    batches: Iterable[Batch],
    iterations: int = 1,
    *,
    temperature: float = TEMPERATURE,
    weights: Mapping[str, nn.Parameter] | None = None,
    schedule: str = "exponential",
    scope: str = "global",
    dtype: torch.dtype = torch.float32,
    on_iteration: OnIteration | None = None,
) -> dict[str, Tensor]:
    """Find a mask by GraSP and apply it: pruned weights become +0.0, survivors keep their bits.

    The weights with the highest ``-w * Hg`` are pruned. Nothing else of ``net`` changes: biases,
    batch-norm statistics, gradients, ``requires_grad``, modes, and the global random state are as
    before; on an exception the weights, too.

    Args:
        net: a network drawn by `pabzip.init_`, or any network with ``weights``; its operations
            need second derivatives.
        keep_ratio: fraction of the weights that survives, in (0, 1].
        batches: training images, pairs of inputs ``float[B, ...]`` and labels ``int64[B]`` on any
            device; the authors use 10 to 25 a class. Batch norm normalizes each batch by itself.
        iterations: rounds of scoring and pruning; the published choice is one.
        temperature: what the logits are divided by, above 0. High makes the predictions nearly
            uniform, so that the labels matter less than the network's features; 200 is published.
        weights: the weights to decide on, by name; the seeded ones by default.
        schedule: how the number of survivors falls, one of `pabzip.search.SCHEDULES`.
        scope: ``"global"`` for one threshold, ``"layer"`` for one of each weight tensor.
        dtype: of the computation.
        on_iteration: called as ``on_iteration(i, iterations)`` after each round, i from 1.

    Returns:
        The masks by name, in the order of the weights: bool, of the weight's shape, on its device.

    Raises:
        SearchError: an argument out of range, batches that do not fit the network, an operation
            without a second derivative, scores that are not finite (the layer is named), or layer
            collapse (the layers are named).
        SeedError: ``weights`` is not given and ``net`` was not drawn from a seed.

    Source: Wang et al. 2020, Section 4 and Algorithm 2; the temperature is in the authors' code
    alone. Deviations: every layer keeps its own weights, where their code draws the classifier
    anew first; batches may be of any classes; ties at the threshold are settled by position.
    """
    chosen = search_weights(net, weights)
    network = LossNetwork(net, chosen, batches, dtype, temperature)
    return iterative_search(
        net, chosen, GraspScorer(network), prune_groups(chosen, keep_ratio, scope),
        network.input_shape, iterations, schedule=schedule, on_iteration=on_iteration,
    )  # fmt: skip
