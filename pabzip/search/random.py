"""Random masks, with one keep ratio for all weights or one for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pabzip.errors import SearchError
from pabzip.init import Selection, seeding
from pabzip.registry import register_search
from pabzip.search.driver import OnIteration, input_shape_of, iterative_search, search_weights
from pabzip.search.schedule import PruneGroup, prune_groups
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


@register_search("random", needs_data=False, rounds=1)
def random(
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
    """Keep weights at random and prune the rest: they become +0.0, survivors keep their bits.

    Args:
        net: a network drawn by `pabzip.init_`, or any network with ``weights`` and ``seed``.
        keep_ratio: fraction of the weights that survives, in (0, 1]; the count is exact.
        input_shape: shape of one input, without the batch dimension; tells whether a layer that
            was emptied cuts the network. Without it every layer has to keep something.
        example_inputs: in place of ``input_shape``, a batch ``float[B, ...]``.
        targets: not used.
        only: the seeded weights to decide on, as for `pabzip.search.synflow`.
        skip: seeded weights that stay as they are.
        weights: in place of ``only`` and ``skip``, any parameters of ``net`` by name. The order
            of the weights matters, since each has its own random stream by its place.
        iterations: not used, as ``schedule`` and ``on_iteration``: there is one round.
        schedule: not used.
        scope: ``"global"``: the count is exact over all weights; ``"layer"``: in each tensor.
        seed: of the scores, ``0 <= seed < 2**64``; the network's own by default. The scores do
            not depend on torch's random state, and are independent of the weights.
        on_iteration: not used.

    Returns:
        The masks by name, in the order of the weights: bool, of the weight's shape, on its device.

    Raises:
        SearchError: an argument out of range, or layer collapse (the layers are named).
        SeedError: a seed out of range, or neither given nor on record; or ``only`` or ``skip``
            names nothing.
    """
    chosen = search_weights(net, only, skip, weights)
    scorer = RandomScorer(chosen, seeding(net).seed if seed is None else seed)
    groups = prune_groups(chosen, keep_ratio, scope)
    return iterative_search(
        net, chosen, scorer, groups, input_shape_of(input_shape, example_inputs)
    )


@register_search("layerwise-random", needs_data=False, rounds=1, takes=("ratios",))
def layerwise_random(
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
    ratios: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:
    """Keep weights at random, of each tensor its own fraction: the shape of a ticket, no more.

    Args:
        net: as for `random`, and so are all arguments that are not said to differ.
        keep_ratio: fraction that survives of each weight without a ratio of its own; exactly
            ``round(keep_ratio * n)`` of its n weights do.
        input_shape: as for `random`.
        example_inputs: as for `random`.
        targets: not used.
        only: as for `random`.
        skip: as for `random`.
        weights: as for `random`.
        iterations: not used.
        schedule: not used.
        scope: not used: every tensor has a threshold of its own.
        seed: as for `random`.
        on_iteration: not used.
        ratios: fraction of some weights that survives, in (0, 1], by their names.

    Returns:
        The masks by name, in the order of the weights: bool, of the weight's shape, on its device.

    Raises:
        SearchError: a ratio out of range, or of no weight that is searched; the message names it.
        SeedError: as for `random`.

    Source: Frankle et al. 2021 and Su et al. 2020 ("random tickets"): at initialization the
    fractions of the layers matter more than which weights they are.
    """
    chosen = search_weights(net, only, skip, weights)
    own = dict(ratios or {})
    for name in own:
        if name not in chosen:
            raise SearchError(
                f"ratios: expected names among {', '.join(list(chosen)[:8])}"
                f"{' and so on' if len(chosen) > 8 else ''}, found {name!r}"
            )
    scorer = RandomScorer(chosen, seeding(net).seed if seed is None else seed)
    groups = [PruneGroup((name,), own.get(name, keep_ratio)) for name in chosen]
    return iterative_search(
        net, chosen, scorer, groups, input_shape_of(input_shape, example_inputs)
    )
