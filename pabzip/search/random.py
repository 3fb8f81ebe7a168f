"""Random masks, with one keep ratio for all weights or one for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pabzip.errors import SearchError
from pabzip.init import seeding
from pabzip.search.driver import iterative_search, search_weights
from pabzip.search.schedule import PruneGroup, layer_prune_groups, prune_groups
from pabzip.seeds import InitSpec, check_seed, magnitudes

FIRST_STREAM = 2**29
"""Stream of the first weight's scores. Weights are drawn from the streams far below; latent weights
begin at 2**30, dropped steps at 3 * 2**29, and the order of the data at 2**31."""


class RandomScorer:
    """Scores weights by uniform random numbers: Philox words of a seed and a stream a weight.

    The scores are a function of the seed, the weight's number and its shape alone: the same on
    every device, with any number of threads, in every version of torch, and in every search of a
    run, so that a later search with fewer survivors keeps a part of the earlier ones'.

    Args:
        weights: the weights to score, by name, in the order that numbers them.
        seed: ``0 <= seed < 2**64``.

    Raises:
        SeedError: a seed out of range.

    Source: Philox4x32-10, Salmon et al. 2011; a score is the low 31 bits of an element's word.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], seed: int):
        self._seed = check_seed(seed)
        self._weights = dict(weights)

    def scores(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return whole numbers from 0 to ``2**31 - 1`` as float64, on the weights' devices."""
        return {
            name: self._drawn(number, weight)
            for number, (name, weight) in enumerate(self._weights.items())
        }

    def _drawn(self, number: int, weight: Tensor) -> Tensor:
        """Return the scores of the weight with this number."""
        spec = InitSpec("uniform", 1.0, FIRST_STREAM + number)
        words = magnitudes(self._seed, spec, 0, weight.numel()) >> np.uint32(1)
        scores = torch.from_numpy(words.astype(np.float64)).view(weight.shape)
        return scores.to(weight.device)


def random(
    net: nn.Module,
    keep_ratio: float,
    input_shape: Sequence[int],
    *,
    seed: int | None = None,
    weights: Mapping[str, nn.Parameter] | None = None,
    scope: str = "global",
) -> dict[str, Tensor]:
    """Keep weights at random and prune the rest: they become +0.0, survivors keep their bits.

    Args:
        net: a network drawn by `pabzip.init_`, or any network with ``weights`` and ``seed``.
        keep_ratio: fraction of the weights that survives, in (0, 1]; the count is exact.
        input_shape: shape of one input, without the batch dimension; tells whether a layer that
            was emptied cuts the network.
        seed: of the scores, ``0 <= seed < 2**64``; the network's own by default. The scores do
            not depend on torch's random state, and are independent of the weights.
        weights: the weights to decide on, by name; the seeded ones by default. Their order
            matters, since each has its own random stream by its place.
        scope: ``"global"``: the count is exact over all weights; ``"layer"``: in each tensor.

    Returns:
        The masks by name, in the order of the weights: bool, of the weight's shape, on its device.

    Raises:
        SearchError: an argument out of range, or layer collapse (the layers are named).
        SeedError: a seed out of range, or neither given nor on record.
    """
    chosen = search_weights(net, weights)
    return _search(net, chosen, prune_groups(chosen, keep_ratio, scope), input_shape, seed)


def layerwise_random(
    net: nn.Module,
    keep_ratios: Mapping[str, float],
    input_shape: Sequence[int],
    *,
    seed: int | None = None,
    weights: Mapping[str, nn.Parameter] | None = None,
) -> dict[str, Tensor]:
    """Keep weights at random, of each tensor its own fraction: the shape of a ticket, no more.

    Args:
        net: a network drawn by `pabzip.init_`, or any network with ``weights`` and ``seed``.
        keep_ratios: fraction of each weight that survives, in (0, 1], by its name; exactly
            ``round(keep_ratio * n)`` of its n weights do.
        input_shape: shape of one input, without the batch dimension.
        seed: as for `random`.
        weights: as for `random`.

    Returns:
        The masks by name, in the order of the weights: bool, of the weight's shape, on its device.

    Raises:
        SearchError: a ratio out of range, missing, or of no weight that is searched; the message
            names it.
        SeedError: a seed out of range, or neither given nor on record.

    Source: Frankle et al. 2021 and Su et al. 2020 ("random tickets"): at initialization the
    fractions of the layers matter more than which weights they are.
    """
    chosen = search_weights(net, weights)
    unknown = [name for name in keep_ratios if name not in chosen]
    missing = [name for name in chosen if name not in keep_ratios]
    if unknown or missing:
        problem = f"found {unknown[0]!r}" if unknown else f"found none for {missing[0]!r}"
        raise SearchError(
            f"keep_ratios: expected one for each of {', '.join(list(chosen)[:8])}"
            f"{' and so on' if len(chosen) > 8 else ''}, {problem}"
        )
    groups = layer_prune_groups({name: keep_ratios[name] for name in chosen})
    return _search(net, chosen, groups, input_shape, seed)


def _search(
    net: nn.Module,
    chosen: Mapping[str, nn.Parameter],
    groups: Sequence[PruneGroup],
    input_shape: Sequence[int],
    seed: int | None,
) -> dict[str, Tensor]:
    """Search by random scores; no seed means the network's own."""
    scorer = RandomScorer(chosen, seeding(net).seed if seed is None else seed)
    return iterative_search(net, chosen, scorer, groups, input_shape)
