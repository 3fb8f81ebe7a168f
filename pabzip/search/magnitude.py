"""Magnitude: keep the largest weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from pabzip.init import Selection
from pabzip.registry import register_search
from pabzip.search.driver import OnIteration, input_shape_of, iterative_search, search_weights
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


@register_search("magnitude", needs_data=False, rounds=1)
def magnitude(
    net: nn.Module,
    keep_ratio: float,
    *,
    input_shape: Sequence[int] | None = None,
    example_inputs: Tensor | None = None,
    targets: object = None,
    only: Selection | None = None,
    skip: Selection | None = None,
    weights: Mapping[str, nn.Parameter] | None = None,
    iterations: int | None = None,
    schedule: str = "exponential",
    scope: str = "global",
    seed: int | None = None,
    on_iteration: OnIteration | None = None,
) -> dict[str, Tensor]:
    """Keep the largest weights and prune the rest: they become +0.0, survivors keep their bits.

    A weight's magnitude does not depend on what else is pruned, so one round finds the mask. With
    one threshold, layers that were drawn small (those of large fan-in) go first, and may go whole.

    Args:
        net: a network drawn by `pabzip.init_`, or any network with ``weights``.
        keep_ratio: fraction of the weights that survives, in (0, 1].
        input_shape: shape of one input, without the batch dimension; tells whether a layer that
            was emptied cuts the network. Without it every layer has to keep something.
        example_inputs: in place of ``input_shape``, a batch ``float[B, ...]``.
        targets: not used.
        only: the seeded weights to decide on, as for `pabzip.search.synflow`.
        skip: seeded weights that stay as they are.
        weights: in place of ``only`` and ``skip``, any parameters of ``net`` by name.
        iterations: not used, as ``schedule``, ``seed`` and ``on_iteration``: there is one round.
        schedule: not used.
        scope: ``"global"`` for one threshold, ``"layer"`` for one of each weight tensor.
        seed: not used.
        on_iteration: not used.

    Returns:
        The masks by name, in the order of the weights: bool, of the weight's shape, on its device.

    Raises:
        SearchError: an argument out of range, or layer collapse (the layers are named).
        SeedError: ``weights`` is not given and ``net`` was not drawn from a seed, or ``only`` or
            ``skip`` names nothing.

    Source: Janowsky 1989; Frankle et al. 2021, Section 3, as a baseline at initialization.
    """
    chosen = search_weights(net, only, skip, weights)
    groups = prune_groups(chosen, keep_ratio, scope)
    shape = input_shape_of(input_shape, example_inputs)
    return iterative_search(net, chosen, MagnitudeScorer(chosen), groups, shape)
