"""SNIP: keep the connections whose removal would change the loss most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from pabzip.registry import register_search
from pabzip.search.driver import OnIteration, iterative_search, search_weights
from pabzip.search.loss import Batch, LossNetwork
from pabzip.search.schedule import prune_groups


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


@register_search("snip", needs_data=True)
def snip(
    net: nn.Module,
    keep_ratio: float,
    batches: Iterable[Batch],
    iterations: int = 1,
    *,
    weights: Mapping[str, nn.Parameter] | None = None,
    schedule: str = "exponential",
    scope: str = "global",
    dtype: torch.dtype = torch.float32,
    on_iteration: OnIteration | None = None,
) -> dict[str, Tensor]:
    """Find a mask by SNIP and apply it: pruned weights become +0.0, survivors keep their bits.

    Nothing else of ``net`` changes: biases, batch-norm statistics, gradients, ``requires_grad``,
    modes, and the global random state are as before; on an exception the weights, too.

    Args:
        net: a network drawn by `pabzip.init_`, or any network with ``weights``.
        keep_ratio: fraction of the weights that survives, in (0, 1].
        batches: training images, pairs of inputs ``float[B, ...]`` and labels ``int64[B]`` on any
            device. Few samples give noisy scores; about ten a class are usual. Batch norm
            normalizes each batch by itself.
        iterations: rounds of scoring and pruning; the published choice is one, which prunes by
            the dense network's scores and can empty a layer at small keep ratios.
        weights: the weights to decide on, by name; the seeded ones by default.
        schedule: how the number of survivors falls, one of `pabzip.search.SCHEDULES`.
        scope: ``"global"`` for one threshold, ``"layer"`` for one of each weight tensor.
        dtype: of the computation.
        on_iteration: called as ``on_iteration(i, iterations)`` after each round, i from 1.

    Returns:
        The masks by name, in the order of the weights: bool, of the weight's shape, on its device.

    Raises:
        SearchError: an argument out of range, batches that do not fit the network, scores that
            are not finite (the layer is named), or layer collapse (the layers are named).
        SeedError: ``weights`` is not given and ``net`` was not drawn from a seed.

    Source: Lee et al. 2019, Algorithm 1. Deviations: batch norm uses the statistics of the batch,
    as in training, where the authors' code uses those that it was made with; ties at the threshold
    are settled by position.
    """
    chosen = search_weights(net, weights)
    network = LossNetwork(net, chosen, batches, dtype)
    return iterative_search(
        net, chosen, SnipScorer(network), prune_groups(chosen, keep_ratio, scope),
        network.input_shape, iterations, schedule=schedule, on_iteration=on_iteration,
    )  # fmt: skip
