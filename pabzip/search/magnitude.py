"""Magnitude: keep the largest weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from pabzip.search.driver import iterative_search, search_weights
from pabzip.search.schedule import prune_groups


class MagnitudeScorer:
    """Scores weights by ``|w|``.

    Args:
        weights: the weights to score, by name.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter]):
        self._weights = dict(weights)

    def scores(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the magnitude of each weight."""
        return {name: self._weights[name].detach().abs() for name in masks}


def magnitude(
    net: nn.Module,
    keep_ratio: float,
    input_shape: Sequence[int],
    *,
    weights: Mapping[str, nn.Parameter] | None = None,
    scope: str = "global",
) -> dict[str, Tensor]:
    """Keep the largest weights and prune the rest: they become +0.0, survivors keep their bits.

    A weight's magnitude does not depend on what else is pruned, so one round finds the mask. With
    one threshold, layers that were drawn small (those of large fan-in) go first, and may go whole.

    Args:
        net: a network drawn by `pabzip.init_`, or any network with ``weights``.
        keep_ratio: fraction of the weights that survives, in (0, 1].
        input_shape: shape of one input, without the batch dimension; tells whether a layer that
            was emptied cuts the network.
        weights: the weights to decide on, by name; the seeded ones by default.
        scope: ``"global"`` for one threshold, ``"layer"`` for one of each weight tensor.

    Returns:
        The masks by name, in the order of the weights: bool, of the weight's shape, on its device.

    Raises:
        SearchError: an argument out of range, or layer collapse (the layers are named).
        SeedError: ``weights`` is not given and ``net`` was not drawn from a seed.

    Source: Janowsky 1989; Frankle et al. 2021, Section 3, as a baseline at initialization.
    """
    chosen = search_weights(net, weights)
    return iterative_search(
        net, chosen, MagnitudeScorer(chosen), prune_groups(chosen, keep_ratio, scope), input_shape
    )
